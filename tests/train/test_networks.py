"""The networks: built-in architectures, and a user's own."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pyro
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from torch._subclasses.fake_tensor import FakeTensorMode

from edgevae import load
from edgevae.export import GraphError, Source, export_bundle
from edgevae.export.cli import main as export_main
from edgevae.train import (
    ARCHITECTURES,
    LATENTS,
    LIKELIHOODS,
    VAE,
    AbstractEncoder,
    ConfigError,
    Dataset,
    Decoder,
    Encoder,
    ModelConfig,
    Trainer,
    TrainError,
    TrainingConfig,
    architecture_of,
    elbo_of_each,
    fit,
    load_run,
    model_for,
    objective_of,
)
from edgevae.train.cli import main as train_main


@settings(max_examples=40, deadline=None)
@given(channels=st.sampled_from([1, 3]), height=st.integers(4, 64), width=st.integers(4, 64), levels=st.integers(2, 3))
def test_the_convolutions_take_images_of_any_size(channels: int, height: int, width: int, levels: int) -> None:
    config = ModelConfig((channels, height, width), 2, 4, "conv", "categorical", levels)
    vae = VAE(config)
    x = torch.rand(2, *config.data_shape)
    z_loc, z_scale = vae.encoder(x)
    assert z_loc.shape == z_scale.shape == (2, 2)
    assert vae.decoder(z_loc).shape == (2, config.data_dim)
    assert vae.decoder.outputs_at(z_loc).shape == (2, config.data_dim * levels)


def test_convolutional_outputs_keep_the_pixels_positions() -> None:
    torch.manual_seed(0)
    vae = VAE(ModelConfig((1, 16, 16), 2, 4, "conv"))
    loc_img = vae.decoder(torch.randn(1, 2, requires_grad=True)).reshape(16, 16)
    (gradient,) = torch.autograd.grad(loc_img[15, 0], vae.decoder.get_parameter("fc2.bias"))
    places = gradient.reshape(64, 2, 2).abs().sum(0)
    assert places[1, 0] > 0  # the lower left corner of the small map makes the lower left of the image
    assert places[0, 1] == 0


def test_flat_images_and_images_mean_the_same() -> None:
    vae = VAE(ModelConfig((3, 9, 8), 2, 4, "conv"))
    x = torch.rand(2, 3, 9, 8)
    torch.testing.assert_close(vae.encoder(x)[0], vae.encoder(x.flatten(1))[0])


@pytest.mark.parametrize("data_shape", [(64,), (1, 3, 8), (8, 8)])
def test_the_convolutions_refuse_what_is_no_image(data_shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="architecture conv needs images"):
        ModelConfig(data_shape, architecture="conv")


@pytest.mark.parametrize("name", ["architecture", "likelihood"])
def test_an_unknown_choice_is_refused_with_the_valid_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be one of .*, got 'other'"):
        VAE(ModelConfig((1, 8, 8), **{name: "other"}))  # type: ignore[arg-type]  # the other fields have defaults


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("likelihood", list(LIKELIHOODS))
@pytest.mark.parametrize("latent", list(LATENTS))
@pytest.mark.parametrize("num_classes", [0, 3])
def test_every_model_and_guide_stays_on_one_device(
    architecture: str, likelihood: str, latent: str, num_classes: int
) -> None:
    # Simulated CUDA tensors: an operation that mixes devices raises, as it would on a GPU.
    upper_dims = (3,) if latent == "hierarchical" else ()
    networks = ModelConfig((1, 8, 8), 5, 16, architecture, likelihood, data_loc=0.3, data_scale=0.2)
    config = dataclasses.replace(networks, latent=latent, upper_dims=upper_dims, num_classes=num_classes)
    with FakeTensorMode(), torch.device("cuda"), pyro.validation_enabled(False), pyro.get_param_store().scope():
        vae = VAE(config)
        x = torch.rand(6, 1, 8, 8)
        y = [torch.zeros(6, dtype=torch.int64)] if num_classes else []
        guide = poutine.trace(vae.guide).get_trace(x, *y)
        enumerated = poutine.enum(objective_of(vae)[0], first_available_dim=-2)
        model = poutine.trace(poutine.replay(enumerated, guide)).get_trace(x, *y)
        model.compute_log_prob()
        assert model.nodes["obs"]["log_prob"].device.type == "cuda"
        assert model.nodes["latent"]["log_prob"].device.type == "cuda"
        assert vae.reconstruct_img(x, *y).device.type == "cuda"


# A user's own networks


NETWORKS = """
import torch
from torch import nn
from edgevae.train import AbstractDecoder, AbstractEncoder, Decoder

class Own(AbstractEncoder):
    def make_features(self):
        self.layer = nn.Linear(self.data_dim + self.num_classes, self.hidden_dim)
    def features(self, x, labels):
        return torch.tanh(self.layer(x if labels is None else torch.cat([x, labels], dim=1)))

class OwnDecoder(AbstractDecoder):
    def make_outputs(self, num_outputs):
        self.hidden = nn.Linear(self.code_dim, self.hidden_dim)
        self.last = nn.Linear(self.hidden_dim, num_outputs * self.data_dim)
    def outputs(self, code):
        return self.last(torch.tanh(self.hidden(code)))
"""
SIZES = {"data_shape": (1, 8, 8), "z_dim": 3, "hidden_dim": 8}
Write = Callable[..., str]

_numbers = itertools.count()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write networks, and what comes behind them, into a module that can be imported; return its name."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    written = []

    def in_module(more: str = "") -> str:
        name = f"own_networks_{next(_numbers)}"
        (folder / f"{name}.py").write_text(NETWORKS + more, encoding="utf-8")
        importlib.invalidate_caches()
        written.append(name)
        return name

    yield in_module
    for name in written:
        sys.modules.pop(name, None)


def own(name: str, encoder: str = "Own", decoder: str = "OwnDecoder", **choices: object) -> VAE:
    return VAE(ModelConfig(**{**SIZES, "architecture": f"{name}:{encoder},{decoder}", **choices}))  # type: ignore[arg-type]  # by their names


def module_of(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("likelihood", list(LIKELIHOODS))
@pytest.mark.parametrize("latent", list(LATENTS))
@pytest.mark.parametrize("num_classes", [0, 10])
def test_own_networks_go_with_every_likelihood_and_latent(
    write: Write, digits: Dataset, likelihood: str, latent: str, num_classes: int
) -> None:
    upper_dims = (2,) if latent == "hierarchical" else ()
    choices = {"likelihood": likelihood, "latent": latent, "upper_dims": upper_dims, "num_classes": num_classes}
    vae = own(write(), "Own", "OwnDecoder", **choices, data_loc=0.3, data_scale=0.4)
    assert [type(network).__name__ for network in (vae.encoder, vae.decoder)] == ["Own", "OwnDecoder"]
    labels = torch.arange(10) if num_classes else None
    elbos = elbo_of_each(vae, digits.test[:10], 1, labels)
    assert elbos.isfinite().all()
    assert len(elbos.unique()) == 10


def test_a_run_finds_its_networks_again_and_goes_on_with_the_same_weights(
    write: Write, digits: Dataset, tmp_path: Path
) -> None:
    module = module_of(write())
    architecture = architecture_of(module.Own, module.OwnDecoder)
    training = TrainingConfig(epochs=2, batch_size=400, seed=3)
    model = model_for(digits, training, architecture=architecture, z_dim=3, hidden_dim=8)
    steps = itertools.count(1)
    stopped = fit(digits, tmp_path / "run", model, training, report=False, should_stop=lambda: next(steps) == 5)
    assert not stopped.metrics[-1].complete
    resumed = fit(digits, tmp_path / "run", model, training, report=False, resume=True)
    straight = fit(digits, tmp_path / "other", model, training, report=False)
    assert type(resumed.vae.encoder) is module.Own
    assert load_run(tmp_path / "run").vae.config.architecture == architecture
    weights = straight.vae.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in resumed.vae.state_dict().items())


def test_own_networks_are_named_by_where_they_are_found(write: Write) -> None:
    module = module_of(name := write())
    assert architecture_of(module.Own, module.OwnDecoder) == f"{name}:Own,OwnDecoder"
    assert architecture_of(module.Own, Decoder) == f"{name}:Own,Decoder"  # the module has it too
    assert architecture_of(Encoder, Decoder) == "mlp"
    vae = own(name, decoder="Decoder")
    assert type(vae.decoder) is Decoder


def test_classes_that_cannot_be_imported_have_no_architecture_name(write: Write) -> None:
    class Local(Encoder):
        pass

    main = type("InTheProgram", (Encoder,), {"__module__": "__main__"})
    for encoder in (Local, main):
        with pytest.raises(ConfigError, match=r"importable by name.*Define both at the top level of a module"):
            architecture_of(encoder, Decoder)
    first, second = module_of(write()), module_of(write())
    with pytest.raises(ConfigError, match=r"must be in one module.*import one of them in the other's module"):
        architecture_of(first.Own, second.OwnDecoder)
    with pytest.raises(ConfigError, match="must be a subclass of AbstractEncoder"):
        architecture_of(first.OwnDecoder, first.Own)


@pytest.mark.parametrize("architecture", ["other", "a:b", "a:b,c,d", ":A,B", "a.:A,B", "a:A, B", "mlp:", "../a:A,B"])
def test_an_unknown_architecture_is_refused_with_the_known_names(architecture: str) -> None:
    with pytest.raises(ConfigError) as caught:
        VAE(ModelConfig(**{**SIZES, "architecture": architecture}))  # type: ignore[arg-type]  # by their names
    assert str(caught.value) == (
        f"architecture must be one of mlp, conv, or two classes of your own as module:Encoder,Decoder or "
        "path/nets.py:Encoder,Decoder, got "
        f"{architecture!r}"
    )


@pytest.mark.parametrize("module", ["no_such_module", "no_such_package.networks", "edgevae.train.no_such_module"])
def test_a_module_that_is_not_found_is_named_with_what_puts_it_on_the_path(module: str) -> None:
    with pytest.raises(
        ConfigError, match=f"needs the module {module}, .* neither in .* nor on its path; .*PYTHONPATH=FOLDER"
    ):
        own(module)


def test_a_fault_of_the_module_itself_is_shown_as_it_is(write: Write) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        own(write("import no_such_dependency"))
    with pytest.raises(ZeroDivisionError):
        own(write("1 / 0"))


@pytest.mark.parametrize(
    ("more", "encoder", "decoder", "message"),
    [
        ("", "Other", "OwnDecoder", r"no class Other in the module own_networks_\d+ \(.*\); it has Own$"),
        ("", "OwnDecoder", "Own", "must be a subclass of AbstractEncoder, got the class OwnDecoder; the order is"),
        ("", "Own", "nn", "must be a subclass of AbstractDecoder, got a module"),
        ("", "AbstractEncoder", "OwnDecoder", "must be a subclass of AbstractEncoder, got the class AbstractEncoder"),
        ("class Half(AbstractEncoder): pass", "Half", "OwnDecoder", "Half must define features and make_features"),
        (
            "class Deep(Own):\n    def __init__(self, depth, **sizes): pass",
            "Deep",
            "OwnDecoder",
            "Deep must take the arguments of AbstractEncoder, and others with defaults only, or .*: too many",
        ),
        (
            "class Deep(OwnDecoder):\n    def __init__(self, *sizes, depth, **more): pass",
            "Own",
            "Deep",
            "Deep must take the arguments of AbstractDecoder, and others with defaults only, or .*: missing .*'depth'",
        ),
    ],
)
def test_classes_that_do_not_make_a_model_are_refused(
    write: Write, more: str, encoder: str, decoder: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        own(write(more), encoder, decoder)


HEADS = "def forward(self, x, y=None):\n        z_loc, z_scale = super().forward(x, y)\n        return z_loc, "
ENCODERS = {
    "def features(self, x, labels): return x": (
        r"features of .*:Bad must have shape \(batch, 8\), got shape \(2, 64\) for a batch of 2; "
        "the last axis is hidden_dim"
    ),
    "def features(self, x, labels): return x.sum()": r"features of .* must have shape \(batch, 8\), got shape \(\)",
    "def features(self, x, labels): return None": r"features of .* must have shape \(batch, 8\), got a NoneType",
    "def features(self, x, labels):\n        return self.layer(x[:, 1:])": (
        r"Bad fails in line 20 of own_networks_\d+.py for a batch of shape \(2, 1, 8, 8\): .*cannot be multiplied"
    ),
    "def forward(self, x, y=None): return super().forward(x, y)[0]": r"Bad must return z_loc and z_scale, got shape",
    "def forward(self, x, y=None): return super().forward(x, y) * 2": "return z_loc and z_scale, got a tuple of 4",
    f"{HEADS}z_scale[0]": r"z_scale of .*:Bad must have shape \(batch, 3\), got shape \(3,\) for .* is z_dim",
    f"{HEADS}-z_scale": r"z_scale of .*:Bad must be positive, .* got values down to -\d.* Return torch\.exp",
    f"{HEADS}z_scale / 0 * 0": "must be positive, .* got values down to nan",
}


@pytest.mark.parametrize("body", list(ENCODERS))
def test_an_encoder_with_wrong_outputs_is_refused(write: Write, body: str) -> None:
    with pytest.raises(ConfigError, match=ENCODERS[body]):
        own(write(f"class Bad(Own):\n    {body}"), encoder="Bad")


def test_an_encoder_that_divides_by_the_size_of_its_input_is_not_refused(write: Write) -> None:
    body = "def features(self, x, labels): return super().features(x / x.norm(dim=1, keepdim=True), labels)"
    assert type(own(write(f"class Unit(Own):\n    {body}"), encoder="Unit").encoder).__name__ == "Unit"


def test_a_decoder_with_wrong_outputs_is_refused(write: Write) -> None:
    name = write("class Bad(OwnDecoder):\n    def make_outputs(self, num_outputs): super().make_outputs(1)")
    assert own(name, decoder="Bad").decoder.num_classes == 0
    expected = (
        r"outputs of .*:Bad must have shape \(batch, 192\), got shape \(2, 64\) .* num_outputs \* data_dim, 3 \* 64"
    )
    with pytest.raises(ConfigError, match=expected):
        own(name, decoder="Bad", likelihood="categorical", levels=3)


def test_an_encoder_that_ignores_labels_is_refused_in_a_conditional_model(write: Write) -> None:
    name = write("class Bad(Own):\n    def features(self, x, labels): return self.layer(x)")
    assert own(name, encoder="Bad").encoder.hidden_dim == 8
    with pytest.raises(ConfigError, match=r"Bad fails in line \d+ .* and labels \(2,\): .*mat1"):
        own(name, encoder="Bad", num_classes=10)


def test_sizes_are_checked_without_memory_for_them(write: Write) -> None:
    name = write("class Bad(Own):\n    def features(self, x, labels): return x")
    with torch.device("meta"):
        assert own(name, hidden_dim=10**8).encoder.hidden_dim == 10**8
        with pytest.raises(ConfigError, match="features of"):
            own(name, encoder="Bad")


def test_a_users_networks_may_have_arguments_with_defaults(write: Write) -> None:
    name = write(
        "class Deep(Own):\n    def __init__(self, *sizes, depth=3, **more):\n"
        "        self.depth = depth\n        super().__init__(*sizes, **more)"
    )
    encoder = own(name, encoder="Deep").encoder
    assert isinstance(encoder, AbstractEncoder)
    assert encoder.depth == 3


def test_the_check_leaves_weights_statistics_modes_and_generators_as_they_are(write: Write) -> None:
    name = write("""
class Normed(Own):
    def make_features(self):
        super().make_features()
        self.norm = nn.BatchNorm1d(self.hidden_dim)
        self.drop = nn.Dropout()
        self.frozen = nn.Dropout().eval()
    def features(self, x, labels):
        return self.frozen(self.drop(self.norm(super().features(x, labels))))
""")
    torch.manual_seed(0)
    encoder = module_of(name).Normed(3, 8, (1, 8, 8))
    Decoder(3, 8, (1, 8, 8))
    after_making = torch.get_rng_state()
    torch.manual_seed(0)
    vae = own(name, encoder="Normed", decoder="Decoder")
    assert torch.equal(torch.get_rng_state(), after_making)
    assert all(torch.equal(tensor, vae.encoder.state_dict()[key]) for key, tensor in encoder.state_dict().items())
    assert [module.training for module in vae.encoder.modules()] == [module.training for module in encoder.modules()]
    assert not vae.encoder.get_submodule("frozen").training
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_the_command_trains_own_networks_and_keeps_their_name(write: Write, tmp_path: Path) -> None:
    architecture = f"{write()}:Own,OwnDecoder"
    (tmp_path / "settings.toml").write_text(f'architecture = "{architecture}"\n', encoding="utf-8")
    command = ["--dataset", "digits", "--z-dim", "3", "--hidden-dim", "8", "--epochs", "1", "--no-report"]
    for name, options in (
        ("a", ["--architecture", architecture]),
        ("b", ["--config", str(tmp_path / "settings.toml")]),
    ):
        result = CliRunner().invoke(train_main, [*command, *options, "--out", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
        assert f"{architecture} VAE 64-8-3" in result.output
        assert load_run(tmp_path / name).vae.config.architecture == architecture
    resumed = CliRunner().invoke(train_main, ["--epochs", "2", "--resume", "--out", str(tmp_path / "a")])
    assert resumed.exit_code == 0, resumed.output
    assert type(load_run(tmp_path / "a").vae.encoder).__name__ == "Own"


def test_the_command_refuses_networks_that_are_not_there_before_it_reads_data(tmp_path: Path) -> None:
    given = ["--data", str(tmp_path), "--architecture", "no_such_module:A,B"]
    result = CliRunner().invoke(train_main, given)
    assert result.exit_code == 2
    assert "needs the module no_such_module" in re.sub(r"\s+", " ", result.output)


DEEP = """
class Deep(Own):
    def __init__(self, *sizes, depth=1, act="tanh", **more):
        self.depth, self.act = depth, act
        super().__init__(*sizes, **more)
    def make_features(self):
        super().make_features()
        self.more = nn.ModuleList(nn.Linear(self.hidden_dim, self.hidden_dim) for _ in range(self.depth - 1))
    def features(self, x, labels):
        hidden = super().features(x, labels)
        for layer in self.more:
            hidden = getattr(torch, self.act)(layer(hidden))
        return hidden
"""
COMMAND = ["--dataset", "digits", "--z-dim", "3", "--hidden-dim", "8", "--epochs", "1", "--no-report"]


def trained(*options: str) -> str:
    result = CliRunner().invoke(train_main, [*COMMAND, *options])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*options: str) -> str:
    result = CliRunner().invoke(train_main, [*COMMAND, *options])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_networks_come_from_a_file_with_options_and_a_run_finds_both_again_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "beside_own_networks.py").write_text(NETWORKS, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "nets" / "own.py"
    file.write_text(f"from beside_own_networks import *\n{DEEP}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    options = ["--architecture-option", "depth=3,act=relu"]
    output = trained("--architecture", "nets/own.py:Deep,OwnDecoder", *options, "--out", "run")
    assert "own.py:Deep,OwnDecoder VAE 64-8-3" in output
    (tmp_path / "settings.toml").write_text(
        'architecture = "nets/own.py:Deep,OwnDecoder"\narchitecture-option = ["depth=3", "act=relu"]\n',
        encoding="utf-8",
    )
    trained("--config", "settings.toml", "--out", "other", "--no-export-check")
    monkeypatch.chdir("/")
    for name in ("run", "other"):
        run = load_run(tmp_path / name)
        assert run.vae.config.architecture == f"{file}:Deep,OwnDecoder"
        assert run.vae.config.architecture_options == {"depth": 3, "act": "relu"}
        assert len(run.vae.encoder.more) == 2  # type: ignore[arg-type]  # a user's own attribute
        assert architecture_of(type(run.vae.encoder), type(run.vae.decoder)) == f"{file}:Deep,OwnDecoder"
    resumed = CliRunner().invoke(train_main, ["--epochs", "2", "--resume", "--out", str(tmp_path / "run")])
    assert resumed.exit_code == 0, resumed.output
    exported = CliRunner().invoke(export_main, [str(tmp_path / "run"), "--out", str(tmp_path / "bundle")])
    assert exported.exit_code == 0, exported.output
    assert load(tmp_path / "bundle").manifest.model.architecture == "own.py:Deep,OwnDecoder"
    assert str(tmp_path).encode() not in b"".join(path.read_bytes() for path in (tmp_path / "bundle").iterdir())


def test_a_run_whose_file_moved_says_so(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(NETWORKS, encoding="utf-8")
    trained("--architecture", f"{file}:Own,OwnDecoder", "--no-export-check", "--out", str(tmp_path / "run"))
    sys.modules.pop(f"own@{file}")
    file.rename(tmp_path / "moved.py")
    with pytest.raises(ConfigError, match=r"the file .*own\.py with the networks is not there; .* config\.json"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["depht=3"], "takes no option depht; its encoder takes act, depth, its decoder none"),
        (["depth"], "expected NAME=VALUE, each name once, like width=64, got 'depth'"),
        (["depth=1,depth=2"], "expected NAME=VALUE, each name once"),
        (["depth=1", "depth=2"], "depth is set twice; keep one"),
    ],
)
def test_options_that_networks_do_not_take_are_refused(write: Write, options: list[str], message: str) -> None:
    given = [part for option in options for part in ("--architecture-option", option)]
    assert message in refused("--architecture", f"{write(DEEP)}:Deep,OwnDecoder", *given)


def test_a_built_in_architecture_takes_no_options() -> None:
    with pytest.raises(ConfigError, match="architecture mlp takes no option depth; its encoder takes none"):
        VAE(ModelConfig(**SIZES, architecture_options={"depth": 2}))  # type: ignore[arg-type]  # by their names


def test_an_argument_without_default_needs_an_option(write: Write) -> None:
    name = write(DEEP.replace("depth=1", "depth"))
    with pytest.raises(ConfigError, match=r"or with a value in --architecture-option: missing .*'depth'"):
        own(name, "Deep")
    name = write(DEEP.replace("*sizes, depth=1", "*sizes, depth"))
    assert len(own(name, "Deep", architecture_options={"depth": 4}).encoder.more) == 3  # type: ignore[arg-type]


NOT_EXPORTABLE = {
    "if x.mean() > 0:\n            x = -x\n        return super().features(x, labels)": r"`if x\.mean\(\) > 0:`, needs",
    "return super().features(x.reshape(2, -1).reshape(-1, 64), labels)": r"`.*reshape\(2, -1\).*`, works for some",
    "return super().features(torch.special.bessel_j0(x), labels)": r"bessel_j0, which has no ONNX form",
    "return super().features(x, labels) + torch.randn(8)": r"uses aten\.randn, which draws random numbers",
}


@pytest.mark.parametrize("body", list(NOT_EXPORTABLE))
def test_a_training_says_before_its_first_step_that_networks_cannot_be_exported(
    write: Write, tmp_path: Path, body: str
) -> None:
    name = write(f"class Bad(Own):\n    def features(self, x, labels):\n        {body}")
    given = ("--architecture", f"{name}:Bad,OwnDecoder", "--out", str(tmp_path / "run"))
    for options in (given, (*given, "--dry-run")):
        output = refused(*options)
        assert re.search(
            rf"the model could be trained, but not exported: line \d+ of {name}\.py, .*{NOT_EXPORTABLE[body]}", output
        )
        assert output.endswith("To train it all the same, give --no-export-check")
        assert not (tmp_path / "run").exists()
    trained(*given, "--no-export-check")
    assert CliRunner().invoke(train_main, ["--resume", "--epochs", "2", "--out", str(tmp_path / "run")]).exit_code == 0
    exported = CliRunner().invoke(export_main, [str(tmp_path / "run"), "--out", str(tmp_path / "bundle")])
    assert exported.exit_code == 1
    assert re.search(rf"encoder cannot be exported: line \d+ of {name}\.py, .*{NOT_EXPORTABLE[body]}", exported.output)
    assert exported.output.count("\n") == 2
    assert not (tmp_path / "bundle").exists()


NORMED = """
class Normed(Own):
    def make_features(self):
        super().make_features()
        self.norm = nn.BatchNorm1d(self.hidden_dim)
    def features(self, x, labels):
        return self.norm(super().features(x, labels))
"""


def test_a_last_row_alone_joins_the_batch_before_so_that_a_batch_norm_trains(
    write: Write, digits: Dataset, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", digits.train[:286].numpy())
    given = ["--data", str(tmp_path / "rows.npy"), "--architecture", f"{write(NORMED)}:Normed,OwnDecoder"]
    given += [*COMMAND[2:], "--test-fraction", "0.1"]
    result = CliRunner().invoke(train_main, [*given, "--batch-size", "256", "--out", str(tmp_path / "a")])
    assert result.exit_code == 0, result.output
    assert "257 training" in result.output
    assert "1 epochs of 1 steps, batch size 256 (257 in the last step: the rest would be too few" in result.output
    result = CliRunner().invoke(train_main, [*given, "--batch-size", "1", "--out", str(tmp_path / "b")])
    assert result.exit_code == 2
    assert re.search(r"line \d+ of own_networks_\d+\.py, .* need at least 2 rows a process", result.output)


FOLDED = """
class Folded(Own):
    def make_features(self):
        super().make_features()
        self.line, self.line2 = nn.Linear(8, 32), nn.Linear(32, 8)
    def features(self, x, labels):
        lines = torch.tanh(self.line2(torch.tanh(self.line(x.reshape(-1, 8)))))
        return super().features(lines.reshape(len(x), int(x.shape[1])), labels)

class Attending(Own):
    def make_features(self):
        super().make_features()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
    def features(self, x, labels):
        rows = x.unflatten(1, (8, 8))
        return super().features(self.attention(rows, rows, rows)[0].flatten(1), labels)
"""


@pytest.mark.parametrize("encoder", ["Folded", "Attending"])
def test_only_the_batch_is_called_batch(write: Write, digits: Dataset, tmp_path: Path, encoder: str) -> None:
    vae = own(write(FOLDED), encoder).eval()
    source = Source("own", vae, digits.test[:64], "digits", None)
    reports = export_bundle(source, tmp_path / "bundle", ["onnx", "torchscript", "pt2"], part="encoder")
    assert all(report.passed for report in reports)
    graph = onnx.load(tmp_path / "bundle" / "encoder.onnx").graph
    names = {
        (dim.dim_param, value.name)
        for value in (*graph.input, *graph.output, *graph.value_info)
        for dim in value.type.tensor_type.shape.dim
        if dim.dim_param
    }
    assert {"batch"} < {name for name, _ in names} <= {"batch", "8*batch", "2*batch", "4*batch", "16*batch"}
    assert {value for name, value in names if name == "batch"} >= {"x", "z_loc", "z_scale"}


def test_a_batch_that_torchscript_fixes_is_an_error_with_the_users_line(
    write: Write, digits: Dataset, tmp_path: Path
) -> None:
    name = write("""
class Sized(Own):
    def features(self, x, labels):
        return super().features(x.reshape(int(x.shape[0]), 64), labels)
""")
    source = Source("own", own(name, "Sized").eval(), digits.test[:64], "digits", None)
    export_bundle(source, tmp_path / "onnx", ["onnx", "pt2"], part="encoder")
    with pytest.raises(GraphError, match=rf"encoder cannot be exported: line 21 of {name}\.py, `return .*TorchScript"):
        export_bundle(source, tmp_path / "script", ["torchscript"])
    assert not (tmp_path / "script").exists()


def test_int8_leaves_a_network_with_nothing_to_quantize_in_float32(write: Write, tmp_path: Path) -> None:
    name = write("""
class Transposed(AbstractDecoder):
    def make_outputs(self, num_outputs):
        self.first, self.last = nn.Linear(self.code_dim, 256), nn.ConvTranspose2d(16, num_outputs, 4, 2, 1)
    def outputs(self, code):
        return self.last(torch.relu(self.first(code)).unflatten(1, (16, 4, 4))).flatten(1)
""")
    trained("--architecture", f"{name}:Own,Transposed", "--no-export-check", "--out", str(tmp_path / "run"))
    bundle = tmp_path / "bundle"
    result = CliRunner().invoke(export_main, [str(tmp_path / "run"), "--precision", "int8", "--out", str(bundle)])
    assert result.exit_code == 0, result.output
    assert "int8: decoder stays in float32: there is nothing to quantize in it" in result.output
    assert "; decoder in float32, with nothing to quantize |" in (bundle / "README.md").read_text(encoding="utf-8")
    assert set(load(bundle).manifest.precisions["int8"].graphs) == {"encoder", "reconstruct"}
    x = np.zeros((3, 1, 8, 8), np.float32)
    assert load(bundle, precision="int8").reconstruct(x, seed=0).shape == load(bundle).reconstruct(x, seed=0).shape


def test_an_export_without_the_module_says_what_is_missing(
    write: Write, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, training = write(), TrainingConfig(epochs=1)
    model = model_for(digits, training, architecture=f"{name}:Own,OwnDecoder", z_dim=3, hidden_dim=8)
    fit(digits, tmp_path / "run", model, training, report=False)
    monkeypatch.delitem(sys.modules, name)
    (tmp_path / "modules" / f"{name}.py").unlink()
    importlib.invalidate_caches()
    with pytest.raises(TrainError, match=f"needs the module {name}"):
        load_run(tmp_path / "run")
    result = CliRunner().invoke(export_main, [str(tmp_path / "run"), "--out", str(tmp_path / "bundle")])
    assert result.exit_code == 1
    assert f"needs the module {name}" in result.output
    assert "PYTHONPATH=FOLDER" in result.output
    assert not (tmp_path / "bundle").exists()


def test_a_trainer_moves_own_networks(write: Write, digits: Dataset) -> None:
    name = write()
    config = ModelConfig(**{**SIZES, "architecture": f"{name}:Own,OwnDecoder"})  # type: ignore[arg-type]  # by their names
    trainer = Trainer(config, TrainingConfig(batch_size=400), torch.device("cpu"))
    before = {key: tensor.clone() for key, tensor in trainer.vae.state_dict().items()}
    losses = [trainer.fit_epoch(digits.train) for _ in range(2)]
    assert losses[1] < losses[0]
    assert all(not torch.equal(tensor, before[key]) for key, tensor in trainer.vae.state_dict().items())
