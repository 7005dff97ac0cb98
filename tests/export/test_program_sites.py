"""Pyro programs with sites of any number, from model and guide to a bundle that is used by its sites."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from click.testing import CliRunner
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

import edgevae
from edgevae.export import ExportError, GraphError, export_program
from edgevae.export.cli import main as vae_export
from tests.mutations import altered_weights, put
from tests.train.programs import PROGRAMS, Example

CHAIN, DISCRETE, GAMMA = (
    "a latent that hangs on another's draw",
    "a discrete latent that is summed over",
    "Gamma latent",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
    """A program beside its bundle."""

    example: Example
    folder: Path
    model: edgevae.Program

    @property
    def arguments(self) -> dict[str, Any]:
        return {name: value.numpy() for name, value in self.example.arguments.items()}


def exported(name: str, folder: Path) -> Exported:
    pyro.clear_param_store()
    torch.manual_seed(0)
    example = PROGRAMS[name]()
    export_program(example.model, example.guide, example.arguments, folder / "mine", static=example.static)
    return Exported(example, folder / "mine", edgevae.load_program(folder / "mine", provider="cpu"))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(CHAIN, tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def discrete(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(DISCRETE, tmp_path_factory.mktemp("discrete"))


def sites_of(trace: Any, names: list[str]) -> dict[str, Tensor]:
    return {name: trace.nodes[name]["value"].detach() for name in names}


def test_a_bundle_lists_arguments_and_sites_and_passes_its_verification(chain: Exported) -> None:
    assert chain.model.verify().passed
    assert chain.model.same_seed_as_pyro
    assert [argument.name for argument in chain.model.arguments] == list(chain.example.arguments)
    roles = {site.name: site.role for site in chain.model.sites}
    assert (roles["z1"], roles["z2"], roles["x"]) == ("latent", "latent", "observed")
    assert "| z1 | latent | Normal |" in (chain.folder / "README.md").read_text()


def test_a_seed_gives_pyros_sample_where_a_site_hangs_on_another_ones_draw(chain: Exported) -> None:
    pyro.set_rng_seed(5)
    trace: Any = poutine.trace(chain.example.guide).get_trace(**chain.example.arguments)
    posterior = chain.model.encode(**chain.arguments, seed=5)
    found = posterior.sample(seed=5)
    for name, expected in sites_of(trace, ["z1", "z2"]).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5)
        np.testing.assert_allclose(posterior[name].loc, trace.nodes[name]["fn"].base_dist.loc.detach(), atol=1e-5)
    other = chain.model.encode(**chain.arguments, seed=0).sample(seed=5)
    np.testing.assert_array_equal(other["z1"], found["z1"])


def test_the_elbo_of_a_seed_is_that_of_trace_elbo(chain: Exported) -> None:
    pyro.set_rng_seed(6)
    expected = -Trace_ELBO().loss(chain.example.model, chain.example.guide, **chain.example.arguments)
    assert float(chain.model.elbo(**chain.arguments, seed=6).sum()) == pytest.approx(expected, rel=1e-5)
    several = [float(chain.model.elbo(**chain.arguments, seed=edgevae.Noise(6), num_particles=3).mean())]
    pyro.set_rng_seed(6)
    losses = [Trace_ELBO().loss(chain.example.model, chain.example.guide, **chain.example.arguments) for _ in range(3)]
    assert several[0] * 4 == pytest.approx(-np.mean(losses), rel=1e-5)
    score = chain.model.score(**chain.arguments)
    np.testing.assert_allclose(score.elbo, score.reconstruction - score.kl)
    assert chain.model.is_anomaly(**chain.arguments, rate=0.25).sum() >= 1
    bound = chain.model.log_likelihood(**chain.arguments, seed=1, num_particles=100)
    assert (bound > score.elbo - 1).all()


def test_discrete_latents_are_summed_over_as_the_guide_asks(discrete: Exported) -> None:
    elbo = float(discrete.model.elbo(**discrete.arguments, seed=2).sum())
    pyro.set_rng_seed(2)
    objective = TraceEnum_ELBO(max_plate_nesting=2)
    expected = -objective.loss(discrete.example.model, discrete.example.guide, **discrete.example.arguments)
    assert elbo == pytest.approx(expected, rel=1e-4)
    probs = discrete.model.encode(**discrete.arguments)["y"].probs
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-6)
    y = discrete.model.encode(**discrete.arguments).sample(seed=0)["y"]
    assert set(np.unique(y)) <= {0.0, 1.0}


def test_latents_are_decoded_and_generated(chain: Exported) -> None:
    latents = chain.model.encode(**chain.arguments).sample(seed=0)
    decoded = chain.model.decode(latents)
    conditioned = poutine.condition(chain.example.model, {name: torch.from_numpy(z) for name, z in latents.items()})
    trace: Any = poutine.trace(conditioned).get_trace(**chain.example.arguments)
    np.testing.assert_allclose(decoded["x"].mean, trace.nodes["x"]["fn"].base_dist.mean.detach(), atol=1e-5)
    means = chain.model.reconstruct(**chain.arguments, seed=0)["x"]
    np.testing.assert_allclose(means, decoded["x"].mean, atol=1e-5)
    generated = chain.model.generate(n=7, seed=0)["x"].mean
    assert generated.shape == (7, *means.shape[1:])
    assert not np.allclose(generated, chain.model.generate(n=7, seed=1)["x"].mean)


def test_the_posterior_predictive_is_distributed_as_pyros(chain: Exported) -> None:
    model = poutine.uncondition(chain.example.model)
    predictive = Predictive(model, guide=chain.example.guide, num_samples=1000)
    expected = predictive(**chain.example.arguments)["x"].mean(0)
    found = chain.model.posterior_predictive(**chain.arguments, num_samples=1000, seed=0)["x"]
    assert set(np.unique(found)) == {0.0, 1.0}
    np.testing.assert_allclose(found.mean(0), expected, atol=0.09)


def test_many_draws_of_the_posterior_predictive_are_those_of_single_calls_on_one_stream(chain: Exported) -> None:
    together = chain.model.posterior_predictive(**chain.arguments, num_samples=300, seed=3)["x"]
    stream = edgevae.Noise(3)
    singly = [
        chain.model.posterior_predictive(**chain.arguments, num_samples=1, seed=stream)["x"][0] for _ in range(300)
    ]
    np.testing.assert_array_equal(together, np.stack(singly))
    assert chain.model.posterior_predictive(**chain.arguments, num_samples=0, seed=3)["x"].shape == (0, 4, 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PROGRAMS if not name.endswith(("latent", "observed"))])
def test_each_program_is_exported_and_gives_pyros_elbo(name: str, tmp_path: Path) -> None:
    pyro.clear_param_store()
    torch.manual_seed(0)
    example = PROGRAMS[name]()
    export_program(example.model, example.guide, example.arguments, tmp_path / "mine", static=example.static)
    if edgevae.Bundle(tmp_path / "mine").manifest.model.program is None:
        return
    model = edgevae.load_program(tmp_path / "mine", provider="cpu")
    assert model.verify().passed
    given: dict[str, Any] = {
        name: value.numpy() for name, value in example.arguments.items() if name not in example.static
    }
    assert np.isfinite(model.score(**given).elbo).all()
    if model.same_seed_as_pyro and not example.enumerated:
        pyro.set_rng_seed(3)
        expected = -Trace_ELBO().loss(example.model, example.guide, **example.arguments) / example.scale
        assert float(model.elbo(**given, seed=3).sum()) == pytest.approx(expected, rel=1e-4)


def test_changed_weights_are_caught(chain: Exported, tmp_path: Path) -> None:
    mutations = [each for each in altered_weights(chain.folder, "tensor") if each.graph in {"encoder", "decoder"}]
    assert mutations
    for mutation in mutations:
        folder = tmp_path / "altered"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(chain.folder, folder)
        put(folder, mutation)
        assert not edgevae.load_program(folder, provider="cpu").verify().passed, mutation.what


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, _x: model.encode(), "x is missing; expected x"),
        (lambda model, x: model.encode(x, x), "2 arguments were given; expected x"),
        (lambda model, x: model.encode(x[:, :2]), r"x must have shape \(batch, 6\), got \(4, 2\)"),
        (lambda model, x: model.encode(x * np.nan), "x must be finite, got NaN"),
        (lambda model, x: model.encode(x, y=x), "y was given twice, or is no argument"),
        (lambda model, x: model.decode({"z2": x[:, :2]}), "the value of z1 is missing"),
        (lambda model, x: model.encode(x)["z3"], "the guide has no site 'z3', it has z"),
        (lambda model, x: model.elbo(x, seed=-1), "seed must be between 0"),
        (lambda model, x: model.elbo(x, seed=0, num_particles=0), "num_particles must be at least 1"),
        (lambda model, _x: model.threshold(2), "rate must be from 0.001"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(call: Any, message: str, chain: Exported) -> None:
    with pytest.raises(edgevae.InputError, match=message):
        call(chain.model, chain.arguments["x"])


def test_each_loader_names_the_other(chain: Exported, tmp_path: Path) -> None:
    with pytest.raises(edgevae.BundleError, match=r"load it with edgevae\.load_program\(path\)"):
        edgevae.load(chain.folder)
    with pytest.raises(edgevae.BundleError, match=r"load it with edgevae\.load\(path\)"):
        edgevae.load_program(Path(__file__).parents[2] / "models" / "mnist-mlp")


def test_latents_without_a_fixed_amount_of_noise_and_lower_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="has gamma draws, which take no fixed amount of noise"):
        exported(GAMMA, tmp_path)
    assert not (tmp_path / "mine").exists()
    assert issubclass(GraphError, ExportError)


def test_the_command_exports_by_sites_and_says_so(chain: Exported, tmp_path: Path) -> None:
    np.savez(tmp_path / "batch.npz", **chain.arguments)
    program = "from tests.train.programs import TwoLevels\n\n\ndef make():\n    return TwoLevels()\n"
    (tmp_path / "mine.py").write_text(program)
    base = ["--program", f"{tmp_path}/mine.py:make", "--example", f"{tmp_path}/batch.npz", "--out", f"{tmp_path}/out"]
    refused = CliRunner().invoke(vae_export, [*base, "--data-shape", "2,3"])
    assert "is exported by its sites, and measured on its example" in refused.output
    said = CliRunner().invoke(vae_export, base)
    assert said.exit_code == 0, said.output
    assert "edgevae.load_program" in said.output
