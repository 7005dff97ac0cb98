"""Weights in the shapes that people save: a state_dict alone or in a checkpoint, safetensors, Pyro's parameter store.

No file is trusted: nothing is unpickled that could run code.
"""

from __future__ import annotations

import dataclasses
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pyro.distributions import constraints as pyro_constraints
from pyro.params.param_store import StateDict, normalize_param_name
from torch import Tensor
from torch.distributions import constraints as torch_constraints
from torch.distributions import transform_to
from torch.distributions.constraints import Constraint

from edgevae.errors import printable

from .errors import StateDictError

_Path = tuple[str, ...]  # the keys that lead to a set of weights
_State = Mapping[str, Any]

_SAVE = "torch.save(model.state_dict(), path)"
_COPY_AGAIN = "it is cut off or damaged; copy or download it again"

_HEAD_BYTES = 512
_MAX_HEADER_BYTES = 100_000_000  # of safetensors, the format's own limit
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before it wrote zip archives
_LEGACY_PICKLES = 4  # magic number, protocol, system, content
_PROTOCOL = 2  # of the pickles that `weights_only` reads
_MAX_SCANNED_BYTES = 2**26
_PLAIN_MODULES = {
    *("collections", "torch", "torch._tensor", "torch._utils", "torch.nn.parameter", "torch.storage"),
    *(torch_constraints.__name__, pyro_constraints.__name__),
}
_PLAIN_FUNCTIONS = {("__builtin__", "set"), ("builtins", "set"), ("_codecs", "encode")}
_MODULE_PACKAGES = ("torch.nn.", "pyro.nn.")

# What else a file may be, by its first bytes.
_OTHER_KINDS = (
    (b"version https://git-lfs", "is a pointer of Git LFS; fetch the file itself with git lfs pull"),
    (b"<", "is a web page (HTML or XML), such as an error or a login page; download the file again"),
    (b"{", "is JSON text; name the file with the weights themselves"),
    (b"\x93NUMPY", f"is a NumPy array without names; write the weights with {_SAVE}"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it first"),
    (b"\x89HDF", f"is an HDF5 file, as Keras writes; write the weights with {_SAVE}"),
)
_ONNX = b"\x08"  # field 1, the version of the format; then one of the other fields of a model
_ONNX_FIELDS = b"\x12\x1a\x22\x2a\x32\x3a\x42"

_MAX_DEPTH = 3  # of weights in a checkpoint
_COMPILED, _PARALLEL, _WRAPPED = "_orig_mod", "module", "model"
_AVERAGED = "n_averaged"  # the counter of torch.optim.swa_utils.AveragedModel, beside module.*
_PART_ENDS = ("_state_dict", "_state", "_weights")
_ROUNDED = (torch.float16, torch.bfloat16, torch.float64)
_SHOWN = 3

_READ_ERRORS = (
    *(OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(ArithmeticError, MemoryError, struct.error, zipfile.BadZipFile, pickle.UnpicklingError),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """Weights that were read from a file, on the CPU, all of them finite.

    Args:
        path: The file.
        tensors: By the names that a `state_dict` has. Floats are float32; integers and booleans are as stored. Of
            Pyro's store, `decoder$$$fc1.weight` is `decoder.fc1.weight`, and a parameter with a constraint has its
            constrained value. A store holds no buffers, such as BatchNorm's running statistics.
        store: For `pyro.get_param_store().set_state`: unconstrained values and constraints by Pyro's own names; `None`
            where the file is no parameter store.
        notes: What was done, for the user to read, like `10 tensors of float16 became float32`.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    store: StateDict | None = None
    notes: tuple[str, ...] = ()


def read_weights(path: Path, names: Collection[str] | None = None, key: str | None = None) -> Weights:
    """Read weights, without running any code of the file.

    The file may be a `state_dict` that `torch.save` or safetensors wrote; a checkpoint that holds one, up to three keys
    deep; with `names` also one for each part of the model, like `{"encoder": ..., "decoder": ...}`; or what
    `pyro.get_param_store().save(path)` wrote. Prefixes of wrappers are left out: `_orig_mod.` everywhere, `module.` and
    `model.` where all names begin with them. With `names`, any prefix goes without which the names fit.

    Args:
        path: The file.
        names: The names of the model's weights, as its `state_dict` has them. They decide which of several sets of
            weights is taken, and which prefixes are left out. Missing and unexpected names are left to the caller.
        key: Which of several sets to take: the keys that lead to it, with dots between them, like `ema`.

    Raises:
        StateDictError: The file cannot be read, or is of another kind; it holds no weights, or several sets of which
            neither `key` nor `names` chooses one; or a tensor is sparse, quantised, complex, NaN or infinite.
    """
    content = _load(path)
    found = dict(_sets_in(content)) if isinstance(content, Mapping) else {}
    if not found:
        raise StateDictError(f"{path} must hold names and tensors, got {_described(content)}; write it with {_SAVE}")
    where, state = _chosen(path, found, names, key)
    notes = [f"taken from {where}"] if where else []
    rounded: dict[str, int] = {}
    store: StateDict | None = None
    if _is_store(state):
        store = _read_store(path, state, rounded)
        tensors = _constrained(path, store)
        notes.append("read as Pyro's parameter store")
    else:
        tensors = {name: _checked(path, name, tensor, rounded) for name, tensor in state.items()}
    notes += [f"{count} tensor{'s' * (count > 1)} of {dtype} became float32" for dtype, count in rounded.items()]
    plain = {normalize_param_name(name): tensor for name, tensor in tensors.items()}
    if len(plain) < len(tensors):
        twice = [name for name in tensors if name != normalize_param_name(name) in tensors]
        raise StateDictError(f"{path} holds two tensors for each of {few(twice)}: as a module's and as its own name")
    spelled = _spelled(list(plain), names)
    if spelled != list(plain):
        notes.append(f"names were shortened, {next(iter(plain))} to {spelled[0]}")
    return Weights(path, dict(zip(spelled, plain.values(), strict=True)), store, tuple(map(printable, notes)))


def few(names: Collection[str]) -> str:
    """Return the first names in alphabetical order, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(sorted(names)[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _load(path: Path) -> object:
    """Return what the file holds: containers, numbers, text, tensors, and the constraints of PyTorch and Pyro."""
    if path.is_dir():
        raise StateDictError(f"{path} is a folder; name the file with the weights in it")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError as error:
        raise StateDictError(f"{path} is not there; give a file that torch.save or safetensors wrote") from error
    except OSError as error:
        raise StateDictError(f"{path} cannot be read: {error.strerror or error}") from error
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER_BYTES:
        return _guarded(path, lambda: safetensors.torch.load_file(path))
    if head.startswith(_ZIP):
        names = _guarded(path, lambda: _names_in_archive(path))
        if (kind := _kind_of_archive(names)) is not None:
            raise StateDictError(f"{path} {kind}")
    elif not (head.startswith(_PICKLE) and head[2:].startswith(_LEGACY_MAGIC)):
        raise StateDictError(f"{path} {_kind_of_file(head)}")
    return _guarded(path, lambda: _torch_load(path))


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    """Return what `read` returns; say in one line why it cannot."""
    try:
        return read()
    except (safetensors.SafetensorError, *_READ_ERRORS) as error:
        if isinstance(error, OSError) and error.strerror:
            raise StateDictError(f"{path} cannot be read: {error.strerror}") from error
        why = _why_not_weights(path) if isinstance(error, pickle.UnpicklingError) else None
        raise StateDictError(f"{path} {why or f'cannot be read: {_COPY_AGAIN}'}") from error


def _torch_load(path: Path) -> object:
    classes: list[Any] = [
        found
        for module in (torch_constraints, pyro_constraints)
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, Constraint) and found.__module__ == module.__name__
    ]
    with torch.serialization.safe_globals(classes), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old formats and sparse tensors, which are judged here
        return torch.load(path, map_location="cpu", weights_only=True)


def _names_in_archive(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _kind_of_archive(names: list[str]) -> str | None:
    """Say what a zip archive is, if it is not one that torch.save writes."""
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        return "is a TorchScript archive; write its weights with torch.save(torch.jit.load(path).state_dict(), other)"
    if "archive_format" in last or "serialized_exported_program.json" in last:
        return (
            "is a program of torch.export; write its weights with torch.save(torch.export.load(path).state_dict, other)"
        )
    if "data.pkl" in last:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return f"is an archive of NumPy arrays (.npz); write the weights with {_SAVE}"
    return f"is a zip archive, but none of torch.save; write the weights with {_SAVE}"


def _kind_of_file(head: bytes) -> str:
    """Say what a file is that none of the readers takes."""
    if not head:
        return "is empty; copy or download it again"
    if head.startswith(_PICKLE):
        if _LEGACY_MAGIC.startswith(head[2:]):
            return f"cannot be read: {_COPY_AGAIN}"
        return f"is a pickle that torch.save did not write; write the weights with {_SAVE}"
    if head.startswith(_ONNX) and head[2:3] in _ONNX_FIELDS:
        return "is an ONNX graph, which is exported already; give the weights that it was made from"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, kind in _OTHER_KINDS:
        if start.startswith(magic):
            return kind
    return f"is no file of weights by its first bytes; expected what torch.save or safetensors writes: {_SAVE}"


def _why_not_weights(path: Path) -> str | None:
    """Say what stands in the way of reading a pickle of torch.save without running code; `None` if that is not it."""
    classes, protocol = _classes_in(path)
    foreign = [f"{module}.{name}" for module, name in classes]
    own = [name for name in foreign if not name.startswith(("torch.", "pyro."))] or foreign
    if any(name.startswith(_MODULE_PACKAGES) for name in foreign):
        return (
            f"holds a whole pickled module ({own[0]}), which is not read because that runs code; load it in the "
            f"program that wrote it, and write its weights with {_SAVE}"
        )
    if foreign:
        return (
            f"holds objects of {few(own)}, which are not read because that runs code; load it in the program that "
            "wrote it, and write the weights alone with torch.save(checkpoint['state_dict'], path)"
        )
    if protocol > _PROTOCOL:
        return f"was written with pickle protocol {protocol}; write it without pickle_protocol, with {_SAVE}"
    return None


def _classes_in(path: Path) -> tuple[list[tuple[str, str]], int]:
    """Return what a pickle of torch.save names beside tensors and constraints, by module and name, and its protocol."""
    found: dict[tuple[str, str], None] = {}
    protocol, strings = 0, ["", ""]
    try:
        for opcode, argument, _ in _opcodes(path):
            if opcode.name == "PROTO":
                protocol = max(protocol, argument)
            elif opcode.name == "GLOBAL":
                module, _, name = argument.partition(" ")
                found[module, name] = None
            elif opcode.name == "STACK_GLOBAL":
                found[strings[-2], strings[-1]] = None
            elif isinstance(argument, str):
                strings = [strings[-1], argument]
    except _READ_ERRORS:
        pass  # what was found until there is enough for a message
    return [each for each in found if each[0] not in _PLAIN_MODULES and each not in _PLAIN_FUNCTIONS], protocol


def _opcodes(path: Path) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
            with archive.open(name) as file:
                yield from pickletools.genops(file.read(_MAX_SCANNED_BYTES))
        return
    with path.open("rb") as file:
        for _ in range(_LEGACY_PICKLES):
            yield from pickletools.genops(file)


def _sets_in(content: Mapping[Any, Any], path: _Path = ()) -> Iterator[tuple[_Path, _State]]:
    """Yield each set of weights in a checkpoint with the keys that lead to it.

    Metrics, which are numbers without axes, and an optimizer's state, which has numbers for keys, are none.
    """
    if _is_store(content):
        yield path, content
    elif content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        if not path or any(value.ndim for value in content.values()):
            yield path, _without_count(content)
    elif len(path) < _MAX_DEPTH:
        for name, value in content.items():
            if isinstance(name, str) and isinstance(value, Mapping):
                yield from _sets_in(value, (*path, name))


def _is_store(content: Mapping[Any, Any]) -> bool:
    if content.keys() != {"params", "constraints"}:
        return False
    params, constraints = content["params"], content["constraints"]
    if not isinstance(params, Mapping) or not isinstance(constraints, Mapping):
        return False
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in params.items())


def _without_count(state: _State) -> _State:
    """Return the weights of an averaged model without the number of models in the average."""
    names = state.keys() - {_AVERAGED}
    if names != state.keys() and names and all(name.startswith(f"{_PARALLEL}.") for name in names):
        return {name: tensor for name, tensor in state.items() if name != _AVERAGED}
    return state


def _chosen(
    path: Path, found: Mapping[_Path, _State], names: Collection[str] | None, key: str | None
) -> tuple[str, _State]:
    """Return one of the sets of weights, and where it stands, empty for the file itself."""
    sets = {".".join(keys): state for keys, state in found.items()}
    if key is not None:
        below = {where: state for where, state in sets.items() if f"{where}.".startswith(f"{key}.")}
        if not below:
            raise StateDictError(f"{path} holds no weights under {key}; it has {_listed(sets)}")
        found = {keys: state for keys, state in found.items() if ".".join(keys) in below}
        sets = below
    fitting = {where: state for where, state in sets.items() if _fits(state, names)}
    if not fitting:
        joined = _joined(found, names)
        if joined is not None:
            return joined
    (first, *others) = (fitting or sets).items()
    if others:
        raise StateDictError(
            f"{path} holds several sets of weights: {_listed(fitting or sets)}; choose one with --weights-key"
        )
    return first


def _listed(sets: Mapping[str, _State]) -> str:
    sizes = {where: len(state["params"] if _is_store(state) else state) for where, state in sets.items()}
    return few([f"{where or 'the file itself'} ({size} tensors)" for where, size in sizes.items()])


def _fits(state: _State, names: Collection[str] | None) -> bool:
    if names is None:
        return False
    have = [normalize_param_name(name) for name in (state["params"] if _is_store(state) else state)]
    return set(_spelled(have, names)) == set(names)


def _joined(found: Mapping[_Path, _State], names: Collection[str] | None) -> tuple[str, _State] | None:
    """Return the weights of a model whose parts were saved side by side, if together they have the expected names."""
    parts = {name.partition(".")[0] for name in names or ()}
    for parent in {keys[:-1] for keys in found if keys}:
        beside: dict[str, tuple[str, _State]] = {}
        for keys, state in found.items():
            if keys and keys[:-1] == parent and not _is_store(state):
                beside[_without_end(keys[-1])] = (".".join(keys), state)
        if not parts or not parts <= beside.keys():
            continue
        joined: dict[str, Tensor] = {}
        for part in parts:
            of_part = [name.partition(".")[2] for name in names or () if name.partition(".")[0] == part]
            state = beside[part][1]
            spelled = _spelled(list(state), of_part)
            joined |= {f"{part}.{name}": tensor for name, tensor in zip(spelled, state.values(), strict=True)}
        if joined.keys() == set(names or ()):
            return ", ".join(sorted(beside[part][0] for part in parts)), joined
    return None


def _without_end(key: str) -> str:
    return next((key.removesuffix(end) for end in _PART_ENDS if key.endswith(end)), key)


def _spelled(found: list[str], names: Collection[str] | None) -> list[str]:
    """Return the names without the prefixes of wrappers, in the same order.

    Args:
        found: The names in the file.
        names: The expected names: of all spellings that one is taken which shares the most with them.
    """
    compiled = _without_parts(found, {_COMPILED})
    wrapped = list(_without_heads(compiled, lambda head: head in {_PARALLEL, _WRAPPED}))
    if names is None:
        return wrapped[-1]
    expected = set(names)
    spellings = [
        spelling
        for start in (found, compiled, _without_parts(found, {_COMPILED, _PARALLEL}))
        for spelling in _without_heads(start, lambda _: True)
    ]
    best = max(spellings, key=lambda spelling: len(expected.intersection(spelling)))
    return best if expected.intersection(best) else wrapped[-1]


def _without_parts(names: list[str], parts: Collection[str]) -> list[str]:
    """Return names without some of the words between their dots; unchanged if two names became one."""
    without = [".".join(word for word in name.split(".") if word not in parts) for name in names]
    return without if len(set(without)) == len(names) and all(without) else names


def _without_heads(names: list[str], may_go: Callable[[str], bool]) -> Iterator[list[str]]:
    """Yield the names, then without the first word that all share, and so on."""
    yield names
    while len({name.partition(".")[0] for name in names}) == 1 and all("." in name for name in names):
        if not may_go(names[0].partition(".")[0]):
            return
        names = [name.partition(".")[2] for name in names]
        yield names


def _checked(path: Path, name: str, tensor: Tensor, rounded: dict[str, int]) -> Tensor:
    """Return a tensor as the model takes it: dense, finite, float32 unless integers or booleans.

    Args:
        path: Where it is from.
        name: Its name, for messages.
        tensor: The tensor.
        rounded: Number of tensors of other floats, by dtype; counted up.
    """
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta:
        raise StateDictError(f"{path}: {name} has a shape but no values (device meta); save the model with its values")
    if tensor.is_quantized:
        raise StateDictError(f"{path}: {name} is quantised ({dtype}); save the weights before quantisation")
    if tensor.layout is not torch.strided or tensor.is_nested:
        layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise StateDictError(f"{path}: {name} is sparse ({layout}); save {name}.to_dense()")
    if not tensor.is_floating_point():
        if tensor.is_complex():
            raise StateDictError(f"{path}: {name} is complex ({dtype}), and weights are real; save real numbers")
        return tensor.detach().contiguous()
    if tensor.dtype not in (*_ROUNDED, torch.float32):
        raise StateDictError(f"{path}: {name} is of dtype {dtype}, which needs a scale; save it in float32")
    tensor = tensor.detach()
    _check_finite(path, name, tensor)
    values = tensor.to(torch.float32, memory_format=torch.contiguous_format)
    if tensor.dtype in _ROUNDED:
        rounded[dtype] = rounded.get(dtype, 0) + 1
        if not torch.isfinite(values).all():
            largest = float(tensor.abs().max())
            raise StateDictError(f"{path}: {name} holds {largest:.3g}, too large for float32; scale the model down")
    return values


def _check_finite(path: Path, name: str, tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise StateDictError(f"{path}: {name} holds NaN or infinity; the training that wrote it diverged")


def _read_store(path: Path, state: _State, rounded: dict[str, int]) -> StateDict:
    """Return the state of Pyro's store with float32 values."""
    store: StateDict = {"params": {}, "constraints": {}}
    if not state["params"]:
        raise StateDictError(f"{path} is an empty parameter store; save Pyro's store after the training")
    for name, param in state["params"].items():
        constraint = state["constraints"].get(name)
        if not isinstance(constraint, Constraint):
            raise StateDictError(
                f"{path} is Pyro's parameter store, without a constraint for {name}; write it with "
                "pyro.get_param_store().save(path)"
            )
        values = _checked(path, name, param, rounded)
        store["params"][name] = values.requires_grad_(param.requires_grad)
        store["constraints"][name] = constraint
    return store


def _constrained(path: Path, store: StateDict) -> dict[str, Tensor]:
    """Return the constrained values, as `pyro.param` does."""
    tensors: dict[str, Tensor] = {}
    for name, param in store["params"].items():
        constraint = store["constraints"][name]
        try:
            with torch.no_grad():
                tensors[name] = transform_to(constraint)(param).detach()
        except _READ_ERRORS as error:
            kind = type(constraint).__name__.strip("_")
            raise StateDictError(f"{path}: {name} has no value under its constraint ({kind}); save it anew") from error
        _check_finite(path, name, tensors[name])
    return tensors


def _described(content: object) -> str:
    """Say what a file holds that holds no weights."""
    if not isinstance(content, Mapping):
        return f"a single {type(content).__name__}"
    if not content:
        return "nothing"
    mixed = next((each for each in content.items() if _has_tensors(each[1])), None)
    if mixed is not None:
        return f"{_described(mixed[1])} under {mixed[0]}"
    others = [f"{name} ({type(value).__name__})" for name, value in content.items() if not isinstance(value, Tensor)]
    if others and len(others) < len(content):
        return f"also {few(others)} among the tensors"
    return few(others) if others else f"names of type {type(next(iter(content))).__name__}"


def _has_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(each, Tensor) and each.ndim for each in value.values())
