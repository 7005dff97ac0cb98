"""Pyro programs of a user's own, from model, guide and an example to a bundle."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from click.testing import CliRunner
from pyro import poutine
from pyro.distributions import transforms
from pyro.infer import Predictive, Trace_ELBO
from torch import Tensor, nn

import edgevae
from edgevae.cli import main as vae_run
from edgevae.export import GraphError, ProgramVAE, StateDictError, export_program
from edgevae.export.cli import main as vae_export
from edgevae.export.errors import NotAVAEError
from edgevae.export.loading import load_weights
from edgevae.train import ConfigError
from edgevae.train.program import load_program, run_program
from tests.mutations import altered_weights, is_refused

SIDE, CLASSES, Z, ROWS = 4, 3, 2, 40


@pytest.fixture(autouse=True)
def own_parameters() -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(1)


class Images(nn.Module):
    """A VAE as users write it: images in two axes, sites and arguments with names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 8), nn.Softplus(), nn.Linear(8, 2 * Z))
        self.decoder: nn.Module = nn.Sequential(
            nn.Linear(Z, 8), nn.Softplus(), nn.Linear(8, SIDE**2), nn.Unflatten(1, (SIDE, SIDE))
        )

    def likelihood(self, code: Tensor) -> Any:
        return dist.Bernoulli(logits=self.decoder(code))

    def prior(self, like: Tensor) -> Any:
        return dist.Normal(like.new_zeros(Z), 1)

    def model(self, images: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("rows", len(images)):
            code = pyro.sample("code", self.prior(images).to_event(1))
            pyro.sample("pixels", self.likelihood(code).to_event(2), obs=images)

    def guide(self, images: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("rows", len(images)):
            loc, raw = self.encoder(images).chunk(2, dim=-1)
            pyro.sample("code", dist.Normal(loc, raw.exp()).to_event(1))


class Counts(Images):
    def likelihood(self, code: Tensor) -> Any:
        return dist.Poisson(nn.functional.softplus(self.decoder(code)))


class Heights(Images):
    def likelihood(self, code: Tensor) -> Any:
        return dist.Normal(self.decoder(code), 0.5)


class FlowPrior(Images):
    """The prior is learned: an affine layer of standard normal noise."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.randn(Z)), nn.Parameter(0.3 * torch.randn(Z))

    def prior(self, like: Tensor) -> Any:
        flow = transforms.AffineTransform(self.shift, self.log_scale.exp())
        return dist.TransformedDistribution(dist.Normal(like.new_zeros(Z), 1), [flow])


class Labelled(Images):
    """Labels as one-hot, in encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(SIDE**2 + CLASSES, 2 * Z)
        self.decoder = nn.Linear(Z + CLASSES, SIDE**2)

    def model(self, images: Tensor, digit: Tensor) -> None:  # type: ignore[override]  # takes labels too
        with pyro.plate("rows", len(images)):
            code = pyro.sample("code", self.prior(images).to_event(1))
            logits = self.decoder(torch.cat([code, digit], -1)).unflatten(1, (SIDE, SIDE))
            pyro.sample("pixels", dist.Bernoulli(logits=logits).to_event(2), obs=images)

    def guide(self, images: Tensor, digit: Tensor) -> None:  # type: ignore[override]  # takes labels too
        with pyro.plate("rows", len(images)):
            loc, raw = self.encoder(torch.cat([images.flatten(1), digit], -1)).chunk(2, dim=-1)
            pyro.sample("code", dist.Normal(loc, raw.exp()).to_event(1))


def images() -> Tensor:
    return torch.rand((ROWS, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).round()


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
    """A program beside its bundle."""

    vae: Any
    folder: Path
    model: edgevae.Model
    arguments: dict[str, Tensor]

    @property
    def x(self) -> np.ndarray[Any, Any]:
        return self.arguments["images"].numpy()


def exported(vae: Any, folder: Path, arguments: dict[str, Tensor] | None = None, **options: Any) -> Exported:
    arguments = arguments or {"images": images()}
    export_program(vae.model, vae.guide, arguments, folder / "mine", **options)
    return Exported(vae, folder / "mine", edgevae.load(folder / "mine", provider="cpu"), arguments)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(2)
    return exported(Images(), tmp_path_factory.mktemp("plain"), data_shape=(1, SIDE, SIDE))


def test_a_program_becomes_a_bundle_with_plain_arrays_and_passes_its_verification(plain: Exported) -> None:
    spec = plain.model.manifest.model
    assert (spec.architecture, spec.likelihood, spec.latent) == ("Images", "Bernoulli", "normal")
    assert (spec.data_shape, spec.z_dims) == ((1, SIDE, SIDE), (Z,))
    assert plain.model.verify().passed
    posterior = plain.model.encode(plain.x.reshape(ROWS, -1))
    with torch.no_grad():
        loc, raw = plain.vae.encoder(plain.arguments["images"]).chunk(2, dim=-1)
        loc_img = torch.sigmoid(plain.vae.decoder(loc))
    np.testing.assert_allclose(posterior.z_loc, loc, atol=1e-6)
    np.testing.assert_allclose(posterior.z_scale, raw.exp(), rtol=1e-5)
    np.testing.assert_allclose(plain.model.decode(posterior.z_loc), loc_img.flatten(1), atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 7, ROWS])
def test_the_elbo_of_a_seed_is_that_of_pyros_own_trace_elbo(plain: Exported, rows: int) -> None:
    x = plain.arguments["images"][:rows]
    pyro.set_rng_seed(5)
    expected = -Trace_ELBO().loss(plain.vae.model, plain.vae.guide, x)
    assert float(plain.model.elbo(x.flatten(1).numpy(), seed=5).sum()) == pytest.approx(expected, abs=1e-3)


def test_samples_and_generated_images_of_a_seed_are_pyros(plain: Exported) -> None:
    x = plain.arguments["images"]
    pyro.set_rng_seed(3)
    trace = poutine.trace(plain.vae.guide).get_trace(x)
    z = plain.model.encode(x.flatten(1).numpy()).sample(seed=3)
    np.testing.assert_allclose(z, trace.nodes["code"]["value"].detach(), atol=1e-5)
    pyro.set_rng_seed(4)
    code = torch.randn(5, Z)
    with torch.no_grad():
        expected = torch.sigmoid(plain.vae.decoder(code)).flatten(1)
    np.testing.assert_allclose(plain.model.generate(5, seed=4), expected, atol=1e-6)


def test_the_posterior_predictive_is_distributed_as_pyros(plain: Exported) -> None:
    x = plain.arguments["images"][:2]
    predictive = Predictive(poutine.uncondition(plain.vae.model), guide=plain.vae.guide, num_samples=2000)
    expected = predictive(x)["pixels"].mean(0)
    found = plain.model.posterior_predictive(x.flatten(1).numpy(), 2000, seed=0)
    assert set(np.unique(found)) == {0.0, 1.0}
    np.testing.assert_allclose(found.mean(0), expected.flatten(1), atol=0.06)


def test_the_example_gives_the_threshold(plain: Exported) -> None:
    dataset = plain.model.manifest.dataset
    assert dataset is not None
    assert (dataset.num_train, dataset.num_test) == (0, ROWS)
    low = np.mean(plain.model.is_anomaly(plain.x.reshape(ROWS, -1), rate=0.1))
    assert 0 < low < 0.3


@pytest.mark.parametrize(
    "make", [Counts, pytest.param(Heights, marks=pytest.mark.slow), FlowPrior], ids=lambda make: make.__name__
)
def test_likelihoods_and_priors_of_all_kinds_give_pyros_elbo(make: Callable[[], Any], tmp_path: Path) -> None:
    served = exported(make(), tmp_path)
    x = served.arguments["images"]
    pyro.set_rng_seed(6)
    expected = -Trace_ELBO().loss(served.vae.model, served.vae.guide, x)
    assert float(served.model.elbo(x.flatten(1).numpy(), seed=6).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-3)
    if make is Counts:
        with pytest.raises(edgevae.InputError, match="draws no observations: a draw of Poisson takes no fixed amount"):
            served.model.posterior_predictive(served.x.reshape(ROWS, -1), 2, seed=0)
    if make is FlowPrior:
        assert served.model.manifest.model.latent == "program"
        eps = torch.randn((3, Z), generator=torch.Generator().manual_seed(8))
        with torch.no_grad():
            z = served.vae.shift + served.vae.log_scale.exp() * eps
            means = torch.sigmoid(served.vae.decoder(z)).flatten(1)
        np.testing.assert_allclose(served.model.generate(3, seed=8), means, atol=1e-5)


def test_one_hot_labels_are_classes_for_users_of_the_bundle(tmp_path: Path) -> None:
    classes = torch.arange(ROWS) % CLASSES
    one_hot = nn.functional.one_hot(classes, CLASSES).float()
    served = exported(Labelled(), tmp_path, {"images": images(), "digit": one_hot})
    assert served.model.num_classes == CLASSES
    pyro.set_rng_seed(7)
    expected = -Trace_ELBO().loss(served.vae.model, served.vae.guide, **served.arguments)
    found = served.model.elbo(served.x.reshape(ROWS, -1), seed=7, y=classes.numpy())
    assert float(found.sum()) == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_programs_for_pytorch_are_written_too(tmp_path: Path) -> None:
    vae = Images()
    reports = export_program(
        vae.model, vae.guide, {"images": images()}, tmp_path / "mine", formats=["torchscript", "pt2"]
    )
    assert [report.passed for report in reports] == [True, True]


class TwoLatents(Images):
    def model(self, images: Tensor) -> None:
        with pyro.plate("more rows", len(images)):
            pyro.sample("above", dist.Normal(torch.zeros(len(images)), 1))
        super().model(images)

    def guide(self, images: Tensor) -> None:
        with pyro.plate("more rows", len(images)):
            pyro.sample("above", dist.Normal(images.sum((1, 2)), 1))
        super().guide(images)


class Loop(Images):
    def guide(self, images: Tensor) -> None:
        with pyro.plate("rows", len(images)):
            loc = torch.stack([self.encoder(image[None])[0, :Z] for image in images])
            pyro.sample("code", dist.Normal(loc, 1).to_event(1))


class Choice(Images):
    def likelihood(self, code: Tensor) -> Any:
        return dist.Categorical(logits=self.decoder(code)[..., None].expand(-1, -1, -1, 3))


def test_a_loop_over_the_rows_is_refused_with_its_line(tmp_path: Path) -> None:
    vae = Loop()
    message = r"line \d+ of test_program_vae\.py, `loc = torch\.stack.* in place of a loop over its rows"
    with pytest.raises(GraphError, match=message):
        export_program(vae.model, vae.guide, {"images": images()}, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


class Blind(Images):
    def guide(self, images: Tensor) -> None:
        with pyro.plate("rows", len(images)):
            pyro.sample("code", dist.Normal(pyro.param("loc", torch.zeros(Z)), 1).to_event(1))


def test_a_guide_that_does_not_look_at_the_data_leaves_no_bundle(tmp_path: Path) -> None:
    vae = Blind()
    with pytest.raises(GraphError, match="the guide does not depend on images: its parameters are the same for all"):
        export_program(vae.model, vae.guide, {"images": images()}, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (TwoLatents, r"one normal latent and one observed site, got above \(latent, Normal\), code"),
        (Choice, "site 'pixels' has no mean, its distribution is Categorical"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_other_programs_are_no_vae(make: Callable[[], Any], message: str) -> None:
    vae = make()
    with pytest.raises(NotAVAEError, match=message):
        ProgramVAE(run_program(vae.model, vae.guide, {"images": images()}))


def test_each_changed_weight_is_caught_by_the_verification(plain: Exported, tmp_path: Path) -> None:
    mutations = list(altered_weights(plain.folder, "tensor"))
    assert {mutation.graph for mutation in mutations} >= {"encoder", "decoder", "reconstruct"}
    assert [
        mutation.what for mutation in mutations if not is_refused(plain.folder, mutation, tmp_path / "altered")
    ] == []


FILE = """
import pyro, torch
import pyro.distributions as dist
from torch import nn

class Mine(nn.Module):
    def __init__(self, z_dim=2):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 2 * z_dim), nn.Linear(z_dim, 6)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

class Wide(Mine):
    def __init__(self, z_dim):
        super().__init__(z_dim)

def make_vae():
    torch.manual_seed(9)
    return Mine()

def broken():
    return [1] + (2,)

net = nn.Linear(6, 4)
raw = nn.Linear(2, 6)

def model(x):
    pyro.module("decoder", raw)
    bias = pyro.param("bias", torch.ones(6))
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=raw(z) + bias).to_event(1), obs=x)

def guide(x):
    pyro.module("encoder", net)
    with pyro.plate("data", x.shape[0]):
        loc, log_scale = net(x).chunk(2, -1)
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

pair, number = (model, guide), 3
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "my_models.py").write_text(FILE)
    x = (np.random.default_rng(0).random((ROWS, 6)) > 0.5).astype(np.float32)
    np.savez(tmp_path / "batch.npz", x=x)
    return tmp_path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(vae_export, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(vae_export, [*map(str, arguments)])
    assert result.exit_code != 0
    return re.sub(r"\s+", " ", result.output)


def test_a_file_with_weights_becomes_a_bundle_by_one_command(place: Path) -> None:
    vae = load_program(f"{place}/my_models.py:Mine").owner
    assert vae is not None
    torch.save(
        {"epoch": 3, "model_state_dict": {f"module.{n}": t.double() for n, t in vae.state_dict().items()}},
        place / "w.pt",
    )
    out = place / "bundle"
    said = run(
        "--program", f"{place}/my_models.py:make_vae", "--weights", place / "w.pt", "--example", place / "batch.npz",
        "--out", out,
    )  # fmt: skip
    assert "taken from model_state_dict" in said
    assert f"Wrote {out}" in said
    x = np.load(place / "batch.npz")["x"]
    with torch.no_grad():
        expected = vae.get_submodule("encoder")(torch.from_numpy(x))[:, :2]
    np.testing.assert_allclose(edgevae.load(out, provider="cpu").encode(x).z_loc, expected, atol=1e-6)
    scored = CliRunner().invoke(vae_run, ["score", str(out), str(place / "batch.npz")])
    assert scored.exit_code == 0, scored.output


def test_pyros_parameter_store_fills_plain_functions(place: Path) -> None:
    program = load_program(f"{place}/my_models.py:pair")
    example = {"x": torch.from_numpy(np.load(place / "batch.npz")["x"])}
    Trace_ELBO().loss(program.model, program.guide, **example)
    with torch.no_grad():
        for name, value in pyro.get_param_store().items():
            value.fill_(0.25 if name == "bias" else 0.5)
    pyro.get_param_store().save(str(place / "store.pt"))
    pyro.clear_param_store()
    with torch.no_grad():
        for function in (program.model, program.guide):
            for module in (function.__globals__["raw"], function.__globals__["net"]):
                module.weight.zero_()
    load_weights(program, place / "store.pt", example)
    vae = ProgramVAE(run_program(program.model, program.guide, example))
    with torch.no_grad():
        found = vae.programs["encoder"].module(example["x"])
    z_loc = 0.5 * example["x"].numpy().sum(1, keepdims=True) + 0.5
    np.testing.assert_allclose(found[0], np.repeat(z_loc, 2, 1), atol=1e-6)
    np.testing.assert_allclose(
        vae.decode(np.zeros((1, 2), np.float32)), 1 / (1 + np.exp(-0.75)) * np.ones((1, 6)), atol=1e-6
    )


def test_check_prints_sites_and_functions_and_writes_nothing(place: Path) -> None:
    said = run("--program", f"{place}/my_models.py:make_vae", "--example", place / "batch.npz", "--check")
    assert re.search(r"^z +latent +Normal +2 +loc 2, scale 2$", said, re.MULTILINE)
    assert "encoder: x -> z.loc, z.scale" in said
    assert sorted(path.name for path in place.iterdir() if path.suffix) == ["batch.npz", "my_models.py"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--program", "{}/my_models.py:make_vae"], "--program needs --example"),
        (["--program", "{}/my_models.py", "--example", "{}/batch.npz"], "must be given as FILE.py:NAME or module:NAME"),
        (["--program", "{}/none.py:make", "--example", "{}/batch.npz"], "none.py with the program is not there"),
        (["--program", "{}/my_models.py:other", "--example", "{}/batch.npz"], "there is no other in"),
        (["--program", "{}/my_models.py:Wide", "--example", "{}/batch.npz"], "cannot be called without arguments"),
        (["--program", "{}/my_models.py:broken", "--example", "{}/batch.npz"], "`return [1] + (2,)`, fails where the"),
        (
            ["--program", "{}/my_models.py:number", "--example", "{}/batch.npz"],
            "must be an object with model and guide",
        ),
        (["--program", "{}/my_models.py:Mine", "--example", "{}/my_models.py"], "must be an .npz file with an array"),
        (["--example", "{}/batch.npz"], "--example goes with --program"),
        (["--program", "{}/my_models.py:Mine", "--state-dict", "{}/batch.npz"], "were both given; give one of them"),
        (
            ["--program", "{}/my_models.py:Mine", "--example", "{}/batch.npz", "--data-shape", "7"],
            "got data shape (7,)",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(arguments: list[str], message: str, place: Path) -> None:
    given = [argument.format(place) for argument in arguments]
    assert message in refused(*given, "--out", place / "bundle")
    assert not (place / "bundle").exists()


def test_weights_of_another_program_are_refused_by_name(place: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(4, 6)}, place / "few.pt")
    owner = load_program(f"{place}/my_models.py:Mine").owner
    assert owner is not None
    torch.save({**owner.state_dict(), "decoder.bias": torch.zeros(7)}, place / "big.pt")
    program, example = load_program(f"{place}/my_models.py:make_vae"), {"x": torch.zeros(3, 6)}
    with pytest.raises(
        StateDictError, match=r"missing decoder\.bias, decoder\.weight, encoder\.bias; not expected nothing"
    ):
        load_weights(program, place / "few.pt", example)
    with pytest.raises(
        StateDictError, match=r"decoder\.bias must have shape \(6,\), got \(7,\); was the program made with"
    ):
        load_weights(program, place / "big.pt", example)
    with pytest.raises(StateDictError, match="no module that it belongs to"):
        load_weights(load_program(f"{place}/my_models.py:pair"), place / "few.pt", example)


def test_data_of_another_shape_or_range_is_refused(place: Path) -> None:
    np.save(place / "wide.npy", np.zeros((30, 7), np.float32))
    np.save(place / "grey.npy", np.full((30, 6), 200, np.float32))
    base = [
        "--program",
        f"{place}/my_models.py:make_vae",
        "--example",
        place / "batch.npz",
        "--out",
        place / "b",
        "--data",
    ]
    assert "got data shape (7,)" in refused(*base, place / "wide.npy")
    assert "200" in refused(*base, place / "grey.npy")


def test_a_place_must_name_something_there_is() -> None:
    with pytest.raises(ConfigError, match="program no_such_module:make needs the module no_such_module"):
        load_program("no_such_module:make")
