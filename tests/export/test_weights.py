"""Weights in the shapes that people save, and files that hold none."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyro
import pytest
import safetensors.torch
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from edgevae.export import StateDictError, Weights, read_weights

NAMES = ("encoder.fc1.weight", "encoder.fc1.bias", "decoder.fc1.weight", "decoder.fc1.bias")


def state_of(value: float = 1.0) -> dict[str, Tensor]:
    """A small state_dict, all of whose weights are multiples of `value`."""
    return {name: value * torch.arange(1.0, 5.0).reshape(2, 2) for name in NAMES}


def prefixed(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in state.items()}


def saved(folder: Path, content: object, **options: Any) -> Path:
    torch.save(content, folder / "weights.pt", **options)
    return folder / "weights.pt"


def same(weights: Weights, state: Mapping[str, Tensor]) -> bool:
    """Whether names, dtypes and values are those of a state_dict."""
    return weights.tensors.keys() == state.keys() and all(
        tensor.dtype == state[name].dtype and torch.equal(tensor, state[name])
        for name, tensor in weights.tensors.items()
    )


@pytest.fixture
def param_store() -> Iterator[Any]:
    """Pyro's own parameter store, empty, and as it was afterwards."""
    store = pyro.get_param_store()
    with store.scope():
        yield store


# What is read


@pytest.mark.parametrize(
    "key",
    [
        *("state_dict", "model_state_dict", "model", "net", "network", "vae", "module", "weights", "params", "ema"),
        *("vae_state_dict", "anything else"),
    ],
)
def test_a_state_dict_is_found_under_any_key_of_a_checkpoint(tmp_path: Path, key: str) -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(3))])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    checkpoint = {
        key: state_of(),
        "epoch": 3,
        "loss": torch.tensor(0.5),
        "optimizer": optimizer.state_dict(),
        "metrics": {"elbo": torch.tensor(-3.0)},
        "notes": ["text", None, {"lr": 0.1}],
    }
    weights = read_weights(saved(tmp_path, checkpoint))
    assert same(weights, state_of())
    assert weights.notes == (f"taken from {key}",)
    assert weights.store is None


@pytest.mark.parametrize("keys", [("state_dict", "model"), ("model", "state_dict"), ("callbacks", "ema", "weights")])
def test_a_state_dict_may_be_nested(tmp_path: Path, keys: tuple[str, ...]) -> None:
    content: Any = state_of()
    for key in reversed(keys):
        content = {key: content, "epoch": 1}
    weights = read_weights(saved(tmp_path, content))
    assert same(weights, state_of())
    assert weights.notes == (f"taken from {'.'.join(keys)}",)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_plain_state_dict_is_taken_as_it_is(tmp_path: Path, options: dict[str, Any]) -> None:
    weights = read_weights(saved(tmp_path, OrderedDict(state_of()), **options))
    assert same(weights, state_of())
    assert weights.notes == ()


def test_parameters_are_read_as_plain_tensors(tmp_path: Path) -> None:
    path = saved(tmp_path, {name: nn.Parameter(tensor) for name, tensor in state_of().items()})
    weights = read_weights(path)
    assert same(weights, state_of())
    assert not any(tensor.requires_grad for tensor in weights.tensors.values())


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_safetensors_are_known_by_their_content(tmp_path: Path, name: str) -> None:
    safetensors.torch.save_file(prefixed("module.", state_of()), tmp_path / name, {"format": "pt"})
    assert same(read_weights(tmp_path / name), state_of())


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model._orig_mod."]
)
def test_prefixes_of_wrappers_are_left_out(tmp_path: Path, prefix: str) -> None:
    weights = read_weights(saved(tmp_path, {"state_dict": prefixed(prefix, state_of())}))
    assert same(weights, state_of())
    assert weights.notes[1:] == (f"names were shortened, {prefix}{NAMES[0]} to {NAMES[0]}",)


def test_a_compiled_part_loses_its_prefix_within_the_names(tmp_path: Path) -> None:
    state = {name.replace("encoder.", "encoder._orig_mod."): tensor for name, tensor in state_of().items()}
    assert same(read_weights(saved(tmp_path, state)), state_of())


@pytest.mark.parametrize("prefix", ["module.", "model.", "vae."])
def test_a_prefix_that_not_all_names_have_stays(tmp_path: Path, prefix: str) -> None:
    state = {**prefixed(prefix, state_of()), "loss.scale": torch.ones(1)}
    assert same(read_weights(saved(tmp_path, state)), state)


@pytest.mark.parametrize("prefix", ["vae.", "pl_module.vae.", "module.net."])
def test_expected_names_tell_which_prefix_goes(tmp_path: Path, prefix: str) -> None:
    path = saved(tmp_path, prefixed(prefix, state_of()))
    assert same(read_weights(path, NAMES), state_of())


def test_expected_names_tell_which_prefix_stays(tmp_path: Path) -> None:
    state = prefixed("model.", state_of())
    assert same(read_weights(saved(tmp_path, state), list(state)), state)


def test_expected_names_find_parts_that_were_wrapped_each(tmp_path: Path) -> None:
    state = {name.replace(".fc1", ".module.fc1"): tensor for name, tensor in state_of().items()}
    assert same(read_weights(saved(tmp_path, state), NAMES), state_of())


def test_the_prefix_goes_with_most_of_the_expected_names_where_some_are_missing(tmp_path: Path) -> None:
    state = prefixed("vae.", state_of())
    del state["vae.encoder.fc1.bias"]
    assert read_weights(saved(tmp_path, state), NAMES).tensors.keys() == set(NAMES) - {"encoder.fc1.bias"}


def test_an_averaged_model_is_read_without_its_counter(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert same(read_weights(saved(tmp_path, averaged.state_dict())), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_floats_become_float32_and_the_caller_is_told(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    state = {name: tensor.to(dtype) if "encoder" in name else tensor for name, tensor in state_of().items()}
    path = tmp_path / f"weights{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(state, path)
    weights = read_weights(path)
    assert same(weights, state_of())
    assert weights.notes == (f"2 tensors of {str(dtype).removeprefix('torch.')} became float32",)


def test_integers_and_booleans_stay_what_they_are(tmp_path: Path) -> None:
    norm = nn.BatchNorm1d(2)
    state = {**norm.state_dict(), "mask": torch.tensor([True, False])}
    weights = read_weights(saved(tmp_path, state))
    assert same(weights, state)
    assert weights.tensors["num_batches_tracked"].dtype == torch.int64


# Several sets of weights in one file


def test_of_several_sets_one_must_be_chosen(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": state_of(), "ema": state_of(2.0)})
    for names in (None, NAMES):
        with pytest.raises(
            StateDictError,
            match=r"several sets of weights: ema \(4 tensors\), model \(4 tensors\); choose one with --w",
        ):
            read_weights(path, names)
    assert same(read_weights(path, key="ema"), state_of(2.0))
    assert same(read_weights(path, NAMES, "model"), state_of())
    nested = saved(tmp_path, {"model": state_of(), "ema": {"state_dict": state_of(2.0), "decay": 0.9}})
    for key in ("ema", "ema.state_dict"):
        assert same(read_weights(nested, key=key), state_of(2.0))
    path = saved(tmp_path, {"model": state_of(), "ema": state_of(2.0)})
    with pytest.raises(StateDictError, match=r"no weights under swa; it has ema \(4 tensors\), model \(4 tensors\)"):
        read_weights(path, key="swa")


def test_of_several_sets_the_only_one_with_the_expected_names_is_taken(tmp_path: Path) -> None:
    other = {"fc.weight": torch.ones(2, 2)}
    path = saved(tmp_path, {"discriminator": other, "vae": prefixed("module.", state_of()), "stats": other})
    weights = read_weights(path, NAMES)
    assert same(weights, state_of())
    assert weights.notes[0] == "taken from vae"


@pytest.mark.parametrize("ending", ["", "_state_dict", "_state"])
def test_parts_that_were_saved_side_by_side_are_joined_where_they_have_the_expected_names(
    tmp_path: Path, ending: str
) -> None:
    parts: dict[str, Any] = {}
    for part in ("encoder", "decoder"):
        parts[part + ending] = {name.removeprefix(f"{part}."): t for name, t in state_of().items() if part in name}
    parts[f"decoder{ending}"] = prefixed("module.", parts[f"decoder{ending}"])
    path = saved(tmp_path, {**parts, "epoch": 2})
    weights = read_weights(path, NAMES)
    assert weights.tensors.keys() == set(NAMES)
    assert all(torch.equal(tensor, state_of()[name]) for name, tensor in weights.tensors.items())
    assert weights.notes == (f"taken from decoder{ending}, encoder{ending}",)
    with pytest.raises(StateDictError, match="several sets of weights"):
        read_weights(path)


def test_a_long_list_of_sets_is_cut_short(tmp_path: Path) -> None:
    path = saved(tmp_path, {f"model{number}": state_of() for number in range(300)})
    with pytest.raises(StateDictError, match=r"model0 \(4 tensors\), model1 \(4 .* and 297 more; choose") as error:
        read_weights(path)
    assert len(str(error.value)) < 300


# Pyro's parameter store


def test_modules_in_pyros_store_have_the_names_of_a_state_dict(tmp_path: Path, param_store: Any) -> None:
    networks = {name: nn.Sequential(OrderedDict(fc1=nn.Linear(2, 2))) for name in ("encoder", "decoder")}
    for name, network in networks.items():
        pyro.module(name, network)
    param_store.save(tmp_path / "vae.save")
    weights = read_weights(tmp_path / "vae.save")
    assert same(
        weights,
        {
            **prefixed("encoder.", networks["encoder"].state_dict()),
            **prefixed("decoder.", networks["decoder"].state_dict()),
        },
    )
    assert weights.notes == ("read as Pyro's parameter store",)

    param_store.clear()
    assert weights.store is not None
    param_store.set_state(weights.store)
    again = nn.Sequential(OrderedDict(fc1=nn.Linear(2, 2)))
    pyro.module("decoder", again, update_module_params=True)
    assert all(
        torch.equal(tensor, networks["decoder"].state_dict()[name]) for name, tensor in again.state_dict().items()
    )


def test_a_module_of_the_whole_vae_loses_its_name_in_pyros_store_where_the_names_are_expected(
    tmp_path: Path, param_store: Any
) -> None:
    vae = nn.ModuleDict({part: nn.ModuleDict({"fc1": nn.Linear(2, 2)}) for part in ("encoder", "decoder")})
    pyro.module("vae", vae)
    param_store.save(tmp_path / "vae.save")
    assert same(read_weights(tmp_path / "vae.save", NAMES), vae.state_dict())


CONSTRAINED: dict[str, tuple[Any, Any]] = {
    "real": (constraints.real, [1.0, -2.0]),
    "real_vector": (constraints.real_vector, [1.0, -2.0]),
    "positive": (constraints.positive, [1.0, 2.0]),
    "nonnegative": (constraints.nonnegative, [1.0, 2.0]),
    "softplus_positive": (constraints.softplus_positive, [1.0, 2.0]),
    "unit_interval": (constraints.unit_interval, [0.25, 0.5]),
    "interval": (constraints.interval(torch.tensor([0.0, 1.0]), 3.0), [1.0, 2.0]),
    "half_open_interval": (constraints.half_open_interval(0.0, 3.0), [1.0, 2.0]),
    "greater_than": (constraints.greater_than(torch.tensor([0.0, 1.0])), [1.0, 2.0]),
    "greater_than_eq": (constraints.greater_than_eq(-1.0), [1.0, 2.0]),
    "less_than": (constraints.less_than(3.0), [1.0, 2.0]),
    "simplex": (constraints.simplex, [0.25, 0.75]),
    "sphere": (constraints.sphere, [0.6, 0.8]),
    "ordered_vector": (constraints.ordered_vector, [1.0, 2.0]),
    "positive_ordered_vector": (constraints.positive_ordered_vector, [1.0, 2.0]),
    "independent": (constraints.independent(constraints.positive, 1), [1.0, 2.0]),
    "stack": (constraints.stack([constraints.positive, constraints.real]), [1.0, -2.0]),
    "cat": (constraints.cat([constraints.positive, constraints.real], lengths=[1, 1]), [1.0, -2.0]),
    "corr_cholesky": (constraints.corr_cholesky, [[1.0, 0.0], [0.6, 0.8]]),
    "corr_matrix": (constraints.corr_matrix, [[1.0, 0.5], [0.5, 1.0]]),
    "lower_cholesky": (constraints.lower_cholesky, [[1.0, 0.0], [0.5, 2.0]]),
    "softplus_lower_cholesky": (constraints.softplus_lower_cholesky, [[1.0, 0.0], [0.5, 2.0]]),
    "unit_lower_cholesky": (constraints.unit_lower_cholesky, [[1.0, 0.0], [0.5, 1.0]]),
    "positive_definite": (constraints.positive_definite, [[2.0, 0.5], [0.5, 1.0]]),
}


@pytest.mark.parametrize("name", CONSTRAINED)
def test_a_constrained_parameter_has_its_value_and_goes_back_into_pyros_store(
    tmp_path: Path, param_store: Any, name: str
) -> None:
    constraint, value = CONSTRAINED[name]
    theta = pyro.param("theta", torch.tensor(value), constraint=constraint).detach()
    param_store.save(tmp_path / "theta.save")
    weights = read_weights(tmp_path / "theta.save")
    assert weights.tensors.keys() == {"theta"}
    torch.testing.assert_close(weights.tensors["theta"], theta, rtol=0, atol=0)
    torch.testing.assert_close(theta, torch.tensor(value))

    param_store.clear()
    assert weights.store is not None
    param_store.set_state(weights.store)
    again = pyro.param("theta")
    assert torch.equal(again, theta)
    again.sum().backward()
    assert param_store.get_state()["params"]["theta"].grad is not None, "it can be trained on"


def test_a_store_in_double_precision_becomes_float32(tmp_path: Path, param_store: Any) -> None:
    pyro.param("theta", torch.tensor([1.0, 2.0], dtype=torch.float64), constraint=constraints.positive)
    path = saved(tmp_path, {"epoch": 1, "pyro": param_store.get_state()})
    weights = read_weights(path)
    assert weights.store is not None
    assert weights.store["params"]["theta"].dtype == torch.float32
    torch.testing.assert_close(weights.tensors["theta"], torch.tensor([1.0, 2.0]))
    assert weights.notes == (
        "taken from pyro",
        "read as Pyro's parameter store",
        "1 tensor of float64 became float32",
    )


class OwnConstraint(constraints.Constraint):
    """A constraint that only its own program knows."""


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"params": {}, "constraints": {}}, "is an empty parameter store; save Pyro's store after the training"),
        ({"params": {"a": torch.ones(2)}, "constraints": {}}, "without a constraint for a; write it with"),
        ({"params": {"a": torch.ones(2)}, "constraints": {"a": 3}}, "without a constraint for a; write it with"),
        (
            {"params": {"a": torch.ones(2)}, "constraints": {"a": OwnConstraint()}},
            r"holds objects of .*test_weights\.OwnConstraint, which are not read because that runs code",
        ),
        (
            {"params": {"a": torch.ones(2)}, "constraints": {"a": constraints.boolean}},
            r"a has no value under its constraint \(Boolean\)",
        ),
        (
            {"params": {"a": torch.tensor(1e3)}, "constraints": {"a": constraints.positive}},
            "a holds NaN or infinity",
        ),
        (
            {
                "params": {"m$$$a": torch.ones(2), "m.a": torch.zeros(2)},
                "constraints": {"m$$$a": constraints.real, "m.a": constraints.real},
            },
            r"holds two tensors for each of m\$\$\$a",
        ),
    ],
)
def test_a_store_that_pyro_could_not_use_is_refused(tmp_path: Path, state: object, message: str) -> None:
    with pytest.raises(StateDictError, match=message):
        read_weights(saved(tmp_path, state))


# Tensors that are refused


def quantised() -> Tensor:
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore:.*[Qq]uantiz")
@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (lambda: torch.eye(2).to_sparse(), r"a\.weight is sparse \(sparse_coo\); save a\.weight\.to_dense\(\)"),
        (lambda: torch.eye(2).to_sparse_csr(), r"a\.weight is sparse \(sparse_csr\); save a\.weight\.to_dense\(\)"),
        (quantised, r"a\.weight is quantised \(qint8\); save the weights before quantisation"),
        (lambda: torch.ones(2, dtype=torch.complex64), r"a\.weight is complex \(complex64\)"),
        (lambda: torch.ones(2).to(torch.float8_e5m2), r"a\.weight is of dtype float8_e5m2, which needs a scale"),
        (lambda: torch.ones(2, device="meta"), r"a\.weight has a shape but no values"),
        (lambda: torch.tensor([1.0, float("nan")]), r"a\.weight holds NaN or infinity; the training .* diverged"),
        (lambda: torch.tensor([1.0, -float("inf")]).half(), r"a\.weight holds NaN or infinity"),
        (lambda: torch.tensor([1.0, -1e300], dtype=torch.float64), r"a\.weight holds 1e\+300, too large for float32"),
    ],
)
def test_a_tensor_that_is_no_finite_dense_weight_is_named(
    tmp_path: Path, tensor: Callable[[], Tensor], message: str
) -> None:
    path = saved(tmp_path, {**state_of(), "a.weight": tensor()})
    with pytest.raises(StateDictError, match=message):
        read_weights(path)


def test_a_double_that_is_too_large_is_refused_in_safetensors_too(tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.tensor([1e39], dtype=torch.float64)}, tmp_path / "w.safetensors")
    with pytest.raises(StateDictError, match=r"w holds 1e\+39, too large for float32"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"\x1b[2J\nw": torch.tensor([float("nan")])}, r"\\x1b\[2J\\nw holds NaN"),
        ({"\x1b[2J\n": 3}, r"got \\x1b\[2J\\n \(int\)"),
        ({"\x1b[2J": state_of(), "model": state_of()}, r"several sets of weights: \\x1b\[2J \(4 tensors\), model"),
    ],
)
def test_names_in_a_message_are_nothing_that_a_terminal_obeys(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(StateDictError, match=message) as error:
        read_weights(saved(tmp_path, content))
    assert str(error.value).isprintable()


def test_names_in_a_note_are_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    weights = read_weights(saved(tmp_path, {"\x1b[2J": state_of()}))
    assert weights.notes == ("taken from \\x1b[2J",)


# Files that are refused


def written(folder: Path, content: bytes, name: str = "weights.pt") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def bytes_of(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "must hold names and tensors, got nothing"),
        ([torch.zeros(3)], "must hold names and tensors, got a single list"),
        (torch.zeros(3), "got a single Tensor"),
        ({0: torch.zeros(3)}, "got names of type int"),
        ({"epoch": 3, "lr": 0.1}, r"got epoch \(int\), lr \(float\)"),
        ({**state_of(), "epoch": 3}, r"got also epoch \(int\) among the tensors"),
        ({"state_dict": {**state_of(), "x": None}}, r"got also x \(NoneType\) among the tensors under state_dict"),
        ({"a": {"b": {"c": {"d": state_of()}}}}, r"got a \(dict\)"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(StateDictError, match=message):
        read_weights(saved(tmp_path, content))


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize("wrap", [lambda module: module, lambda module: {"model": module, "epoch": 3}])
def test_a_whole_module_is_refused_with_what_to_do_instead(
    tmp_path: Path, wrap: Callable[[nn.Module], object], options: dict[str, Any]
) -> None:
    path = saved(tmp_path, wrap(nn.Sequential(nn.Linear(2, 2))), **options)
    with pytest.raises(
        StateDictError,
        match=r"holds a whole pickled module \(torch\.nn\.modules\.container\.Sequential\), .* write its weights with "
        r"torch\.save\(model\.state_dict\(\), path\)$",
    ):
        read_weights(path)


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize("place", ["beside", "constraint"])
def test_code_in_a_file_is_not_run(tmp_path: Path, options: dict[str, Any], place: str) -> None:
    hostile = Hostile(tmp_path / "made")
    content: Any = {"state_dict": state_of(), "hook": hostile}
    if place == "constraint":
        content = {"params": {"a": torch.ones(1)}, "constraints": {"a": constraints.interval(hostile, 1.0)}}
    path = saved(tmp_path, content, **options)
    with pytest.raises(StateDictError, match=r"holds objects of (posix|nt)\.mkdir, which are not read"):
        read_weights(path)
    assert not (tmp_path / "made").exists()


def test_objects_beside_the_weights_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": state_of(), "args": Namespace(lr=0.1), "best": np.float64(3.0)})
    with pytest.raises(StateDictError, match=r"objects of argparse\.Namespace, numpy.* and write the weights alone"):
        read_weights(path)


def torchscript(folder: Path) -> Path:
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(folder / "weights.pt")
    return folder / "weights.pt"


def exported_program(folder: Path) -> Path:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), folder / "weights.pt2")
    return folder / "weights.pt2"


def onnx_model(folder: Path) -> Path:
    graph = onnx.helper.make_graph([], "g", [], [])
    return written(folder, onnx.helper.make_model(graph, producer_name="test").SerializeToString(), "weights.onnx")


def numpy_archive(folder: Path) -> Path:
    np.savez(folder / "weights.npz", w=np.ones(3))
    return folder / "weights.npz"


def other_archive(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "weights.zip", "w") as archive:
        archive.writestr("weights.txt", "1 2 3")
    return folder / "weights.zip"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder, r"is a folder; name the file with the weights in it"),
        (lambda folder: folder / "none.pt", "is not there; give a file that torch.save or safetensors wrote"),
        (lambda folder: written(folder, b""), "is empty; copy or download it again"),
        (torchscript, r"is a TorchScript archive; write its weights with torch\.save\(torch\.jit\.load\(path\)\.state"),
        (exported_program, r"is a program of torch\.export; write its weights with torch\.save\(torch\.export\.load"),
        (onnx_model, "is an ONNX graph, which is exported already; give the weights that it was made from"),
        (numpy_archive, r"is an archive of NumPy arrays \(\.npz\)"),
        (other_archive, r"is a zip archive, but none of torch\.save"),
        (lambda folder: written(folder, b"\n<!DOCTYPE html><html>404</html>"), r"is a web page \(HTML or XML\)"),
        (lambda folder: written(folder, b"<html>" * 9, "w.safetensors"), r"is a web page \(HTML or XML\)"),
        (lambda folder: written(folder, b'<?xml version="1.0"?><Error/>'), r"is a web page \(HTML or XML\)"),
        (lambda folder: written(folder, b"version https://git-lfs.github.com/spec/v1\n"), "is a pointer of Git LFS"),
        (lambda folder: written(folder, json.dumps({"weight_map": {}}).encode()), "is JSON text"),
        (lambda folder: written(folder, b"\x1f\x8b\x08\x00"), "is compressed with gzip; unpack it first"),
        (lambda folder: written(folder, b"\x93NUMPY\x01\x00"), "is a NumPy array without names"),
        (lambda folder: written(folder, b"nonsense"), "is no file of weights by its first bytes"),
        (lambda folder: written(folder, b"nonsense", "w.safetensors"), "is no file of weights by its first bytes"),
        (
            lambda folder: written(folder, pickle.dumps({"w": [1.0]}, protocol=2)),
            "is a pickle that torch.save did not write",
        ),
        (
            lambda folder: written(folder, bytes_of(state_of(), pickle_protocol=4)),
            "was written with pickle protocol 4; write it without pickle_protocol",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_line(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(StateDictError, match=message) as error:
        read_weights(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        bytes_of(state_of()),
        bytes_of(state_of(), _use_new_zipfile_serialization=False),
        safetensors.torch.save(state_of()),
    ],
    ids=["zip", "legacy", "safetensors"],
)
def test_a_file_that_was_cut_off_anywhere_is_refused(tmp_path: Path, content: bytes) -> None:
    for length in [*range(17, 200, 7), *range(200, len(content), 97), len(content) - 1]:
        path = written(tmp_path, content[:length])
        with pytest.raises(StateDictError, match="it is cut off or damaged; copy or download it again"):
            read_weights(path)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = saved(tmp_path, state_of())
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StateDictError, match=r"weights\.pt cannot be read: Permission denied"):
        read_weights(path)
