"""Pyro programs with sites of any number, from model and guide to a bundle that is used by its sites."""

from __future__ import annotations

import dataclasses
import re
import shutil
import zipfile
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
from edgevae.cli import main as vae_run
from edgevae.export import FORMATS, ExportError, GraphError, SiteProgram, export_bundle, export_program
from edgevae.export.cli import main as vae_export
from edgevae.export.opening import open_program
from edgevae.export.source import source_of_sites
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


def test_latents_without_a_fixed_amount_of_noise_are_refused(tmp_path: Path) -> None:
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
    assert "is exported by its sites, whose shapes stay" in refused.output
    np.save(tmp_path / "more.npy", np.tile(chain.arguments["x"], (25, 1)))
    said = CliRunner().invoke(vae_export, [*base, "--data", f"{tmp_path}/more.npy", "--format", "wheel"])
    assert said.exit_code == 0, said.output
    manifest = edgevae.Bundle(tmp_path / "out").manifest
    assert manifest.dataset is not None
    assert (manifest.dataset.name, manifest.dataset.num_test) == ("more", 100)
    with zipfile.ZipFile(tmp_path / "out-1.0.0-py3-none-any.whl") as wheel:
        package = wheel.read("out/__init__.py").decode()
    assert "return runtime.load_program(" in package
    assert "-> runtime.Program:" in package


@pytest.mark.slow
def test_a_program_by_its_sites_has_all_formats_and_precisions(chain: Exported, tmp_path: Path) -> None:
    exported = open_program(chain.example.model, chain.example.guide, chain.example.arguments)
    assert isinstance(exported, SiteProgram)
    source = source_of_sites(exported, "mine")
    reports = export_bundle(source, tmp_path / "mine", FORMATS, precisions={"fp16": 0.05, "int8": 5.0})
    assert [report.format for report in reports] == ["onnx", "torchscript", "pt2", "onnx fp16", "onnx int8"]
    with edgevae.load_program(tmp_path / "mine", provider="cpu", precision="int8") as model:
        assert model.precision == "int8"
        lost = (chain.model.elbo(**chain.arguments, seed=0) - model.elbo(**chain.arguments, seed=0)).mean()
    assert 0 < abs(lost) < 5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "must hold an array for each argument, x; missing x"),
        ({"x": np.zeros((3, 5))}, r"x must have rows of shape \(6,\), as in the example, got \(5,\)"),
    ],
)
def test_data_that_do_not_fit_the_program_are_refused(data: Any, message: str, chain: Exported, tmp_path: Path) -> None:
    program = chain.example
    with pytest.raises(ExportError, match=message):
        export_program(program.model, program.guide, program.arguments, tmp_path / "mine", data=data)
    assert not (tmp_path / "mine").exists()


def run(*arguments: object) -> str:
    result = CliRunner().invoke(vae_run, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_each_command_takes_arguments_and_sites_by_name(chain: Exported, tmp_path: Path) -> None:
    batch, posterior, decoded = (tmp_path / f"{name}.npz" for name in ("batch", "posterior", "decoded"))
    np.savez(batch, **chain.arguments)
    shown = run("info", chain.folder)
    assert re.search(r"site +z1: latent, shape \(batch, \d\), Normal of loc, scale", shown)
    assert "the samples that it gives in Pyro" in shown
    run("verify", chain.folder)
    run("encode", chain.folder, batch, "--seed", 3, "--out", posterior)
    expected = chain.model.encode(**chain.arguments, seed=3)
    with np.load(posterior) as found:
        np.testing.assert_array_equal(found["z2.scale"], expected["z2"].scale)
        np.testing.assert_array_equal(found["z1"], expected.sample(3)["z1"])
    run("decode", chain.folder, posterior, "--out", decoded)
    with np.load(decoded) as found:
        np.testing.assert_array_equal(found["x.mean"], chain.model.decode(expected.sample(3))["x"].mean)
    np.save(tmp_path / "x.npy", chain.arguments["x"])
    run("reconstruct", chain.folder, tmp_path / "x.npy", "--seed", 1, "--out", tmp_path / "means.npy")
    means = chain.model.reconstruct(**chain.arguments, seed=1)["x"]
    np.testing.assert_array_equal(np.load(tmp_path / "means.npy"), means)
    run("generate", chain.folder, "-n", 5, "--out", decoded)
    with np.load(decoded) as found:
        np.testing.assert_array_equal(found["x.mean"], chain.model.generate(n=5, seed=0)["x"].mean)
    run("score", chain.folder, batch, "--out", tmp_path / "scores.csv")
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "elbo,reconstruction,kl,anomalous"
    assert float(lines[1].split(",")[0]) == chain.model.score(**chain.arguments).elbo[0]
    assert "elbo" in run("bench", chain.folder, "--batch-size", 1, "--seconds", 0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["interpolate", "{bundle}", "{x}", "--out", "{tmp}/o.npy"], "it has no single latent"),
        (["encode", "{bundle}", "{x}", "--y", "1", "--out", "{tmp}/o.npz"], "this program takes x, by name"),
        (["encode", "{bundle}", "{x}", "--out", "{tmp}/o.npy"], "a .npy file holds one array, and there are"),
        (["decode", "{bundle}", "{x}", "--out", "{tmp}/o.npz"], "x.npy: z1 must have shape"),
        (["reconstruct", "{bundle}", "{x}", "--out", "{tmp}/o.npz"], "give a seed, like --seed 0"),
        (["generate", "{bundle}", "--arguments", "{x}", "--out", "{tmp}/o.npz"], "reads no arguments here"),
        (["score", "{bundle}", "{wrong}"], "wrong.npy: x must have shape (batch, 6), got (3, 5)"),
    ],
)
def test_what_a_command_cannot_do_with_a_program_it_refuses(
    arguments: list[str], message: str, chain: Exported, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", chain.arguments["x"])
    np.save(tmp_path / "wrong.npy", np.zeros((3, 5)))
    places = {"bundle": chain.folder, "tmp": tmp_path, "x": tmp_path / "x.npy", "wrong": tmp_path / "wrong.npy"}
    result = CliRunner().invoke(vae_run, [argument.format(**places) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not list(tmp_path.glob("o.*"))
