"""From a module to a program of `torch.export` with a dynamic batch axis. It knows nothing of VAEs.

`torch.export` runs a module once with tensors whose batch size is a symbol, and writes down the operators. Some Python
turns the symbol into a number, and the program would then hold for this one size only. `trace` keeps it symbolic in
`len(x)`, `int(x.shape[0])` and `torch.einsum`; where it cannot, the error names the line of the user's program.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import inspect
import io
import itertools
import linecache
import os
import re
import sysconfig
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import opt_einsum
import pyro
import sympy
import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import edgevae

from .errors import TraceError

_BATCH = "batch"
_SIZES = range(2, 130)  # batch sizes that a line is tried with, to see which line fixes the batch
_LOCK = threading.RLock()  # what `_tracing` replaces belongs to the whole process

_DATA_DEPENDENT = (
    "needs to know a value that depends on the data, and a graph is the same for all data. Choose by "
    "torch.where(condition, a, b) in place of if, and keep numbers in tensors, without .item(), int() and float()"
)
_FIXED_BATCH = (
    "works for some batch sizes only, and a graph takes any. Write x.shape[0] or -1 for the size of the batch, like "
    "x.reshape(x.shape[0], -1), and apply a layer to the whole batch in place of a loop over its rows"
)
_NUMPY = (
    "computes with NumPy, outside of the graph. Use PyTorch's functions; make constants of NumPy arrays when "
    "the module is made, by self.register_buffer(name, torch.from_numpy(array))"
)


def trace(module: nn.Module, example: tuple[Tensor, ...], dynamic_axes: Sequence[int | None]) -> ExportedProgram:
    """Return a module as a program that takes any batch size.

    The module is run as it is, without gradients; set its mode before. Threads trace one after the other.

    Args:
        module: Its `forward` takes the tensors of `example`, in order.
        example: Arguments to trace with. The batch has at least 2 rows, because a size of 1 is taken for a constant.
        dynamic_axes: Of each argument, the axis whose size is that of the batch; `None` if it has none.

    Raises:
        TraceError: The module fails, needs values of its arguments to go on, works for some batch sizes only, draws
            random numbers, or has a layer in training mode. The message names the line of the user's program, and says
            what to write there.
    """
    batch = Dim(_BATCH)
    shapes = iter([None if axis is None else {axis: batch} for axis in dynamic_axes])
    parameters = inspect.signature(module.forward).parameters
    given = inspect.signature(module.forward).bind(*example).arguments
    dynamic_shapes = {
        name: tuple(next(shapes) for _ in value)
        if parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        else next(shapes)
        for name, value in given.items()
    }
    with torch.no_grad():  # else what a program computes in its own no_grad() becomes a graph within the graph
        program = _exported(module, example, dynamic_shapes)
    for node in program.graph.nodes:
        _check_deterministic(node)
    return program


def _exported(module: nn.Module, example: tuple[Tensor, ...], dynamic_shapes: Mapping[str, Any]) -> ExportedProgram:
    with _tracing():
        try:
            with symbolic_lengths(), _whole_stacks(), _conditions() as conditions:
                return torch.export.export(module, example, dynamic_shapes=dynamic_shapes, strict=False)
        except Exception as error:  # noqa: BLE001 - torch.export raises errors of many unrelated classes
            failed = error
        # The strict mode reads bytecode, where int(x.shape[0]) stays symbolic. It knows less of Python: hence second.
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module, example, dynamic_shapes=dynamic_shapes, strict=True)
    raise _explained(failed, conditions) from failed


def _check_deterministic(node: fx.Node) -> None:
    """Refuse an operator that draws random numbers, drops values, or uses the statistics of the batch."""
    operator = node.target
    if not isinstance(operator, OpOverload):
        return
    where = f"{line_of_node(node) or 'the network'} uses {operator.name().partition('.')[0].replace('::', '.')}"
    training = _argument(node, operator, "train", "training")
    if training is True and _argument(node, operator, "running_mean", default=node) is None:
        raise TraceError(
            f"{where} without running statistics, so that a row depends on the others of its batch. Make the layer "
            "with track_running_stats=True, or take nn.LayerNorm or nn.GroupNorm"
        )
    if training is True:
        raise TraceError(
            f"{where} in training mode. Call .eval() on the network before, and give a function training=self.training"
        )
    drops = _argument(node, operator, "dropout_p") != 0  # attention is tagged as random even without dropout
    if training is None and drops and torch.Tag.nondeterministic_seeded in operator.tags:
        raise TraceError(f"{where}, which draws random numbers. Noise must be an input of the graph")


def _argument(node: fx.Node, operator: OpOverload, *names: str, default: object = None) -> object:
    """Return the value of an operator's argument with one of these names, or `default` if it has none."""
    schema = operator._schema  # noqa: SLF001 - there is no public way to the schema
    for index, argument in enumerate(schema.arguments):
        if argument.name in names:
            return (
                node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
            )
    return default


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a program.

    Args:
        file: The path of its file.
        number: Counted from 1.
    """

    file: str
    number: int

    def __str__(self) -> str:
        code = linecache.getline(self.file, self.number).strip()
        return f"line {self.number} of {Path(self.file).name}" + (f", `{code}`," if code else "")


def line_of_error(error: BaseException) -> Line | None:
    """Return the innermost line of the user's program that an error went through; `None` if there is none."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for each in reversed(chain):
        frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(each.__traceback__)]
        if (found := _innermost(reversed(frames))) is not None:
            return found
    return None


def line_of_call() -> Line | None:
    """Return the innermost line of the user's program that is being run; `None` if there is none."""
    return _innermost((frame.f_code.co_filename, line) for frame, line in traceback.walk_stack(None))


def line_of_script_error(error: BaseException) -> Line | None:
    """Return the line that an error went through, or that TorchScript says in its message; `None` if not known."""
    frames = re.findall(r"^\s*(.+)\((\d+)\): ", str(error), re.MULTILINE)
    return _innermost((file, int(number)) for file, number in frames) or line_of_error(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without colours."""
    return _lines(error)[0]


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message, without colours; TorchScript's begin with stacks."""
    return _lines(error)[-1]


def _lines(error: BaseException) -> list[str]:
    return re.sub(r"\x1b\[\d*m", "", str(error)).strip().splitlines() or [""]


def line_of_node(node: fx.Node) -> Line | None:
    """Return the innermost line of the user's program that made a node of a traced program; `None` if not known."""
    frames = re.findall(r'File "(.+?)", line (\d+)', node.meta.get("stack_trace") or "")
    return _innermost((file, int(number)) for file, number in reversed(frames))


def _innermost(frames: Iterable[tuple[str, int]]) -> Line | None:
    """Return the first of these lines that is the user's; the innermost frame comes first."""
    return next((Line(file, number) for file, number in frames if not _is_library(file)), None)


_LIBRARIES = tuple(
    str(folder) + os.sep
    for folder in (
        *(Path(str(package.__file__)).parent for package in (torch, pyro, np, opt_einsum, edgevae)),
        *(Path(__file__).parent.with_name(name) for name in ("train", "export")),
    )
)
_STANDARD = sysconfig.get_path("stdlib") + os.sep


def _is_library(file: str) -> bool:
    standard = file.startswith(_STANDARD) and not {"site-packages", "dist-packages"} & {*Path(file).parts}
    return standard or file.startswith(("<", *_LIBRARIES))


def _explained(error: Exception, sizes: Sequence[tuple[Any, Line | None]]) -> TraceError:
    """Say of an error of `torch.export` where it comes from and what to do; `sizes` is what `_conditions` yielded."""
    fixing = next((line for condition, line in sizes if _fixes_batch(condition)), None)
    line, text = line_of_error(error), str(error)
    if "DataDependent" in type(error).__name__ or "data-dependent" in text:
        why = _DATA_DEPENDENT
    elif line is not None and "numpy" in text.lower():
        why = _NUMPY
    elif "Constraints violated" in text:
        line, why = fixing, _FIXED_BATCH
    elif re.search(r"\bs\d+\b", text):  # the symbol of the batch size
        why = _FIXED_BATCH
    else:
        why = f"fails: {type(error).__name__}: {first_line(error)}"
    return TraceError(f"{line or 'the network'} {why}")


def _fixes_batch(condition: Any) -> bool:
    """Return whether a condition on symbolic sizes, an expression of sympy, is false for some batch."""
    sizes = (condition.xreplace(dict.fromkeys(condition.free_symbols, size)) for size in _SIZES)
    return any(value == sympy.false for value in sizes)


@contextlib.contextmanager
def _tracing() -> Iterator[None]:
    """Prepare PyTorch and Pyro for a trace, and drop the pages that PyTorch prints of an error."""
    import torch._dynamo  # slow; and before `len` is replaced, because it keeps a table of Python's functions

    with (
        _LOCK,
        pyro.validation_enabled(False),  # validation looks at values, and a trace has none
        torch.backends.opt_einsum.flags(enabled=False),  # the search for the best order compares sizes
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        # Recurrent layers and flows keep tensors of their last call; PyTorch puts the former ones back.
        warnings.filterwarnings("ignore", "The tensor attributes? ", UserWarning)
        yield


@contextlib.contextmanager
def symbolic_lengths() -> Iterator[None]:
    """Let `len(x)` be `x.shape[0]`: Python's own makes a number of it."""
    length = builtins.len

    def length_or_size(value: Any, /) -> Any:
        return value.shape[0] if isinstance(value, Tensor) and value.ndim else length(value)

    with mock.patch.object(builtins, "len", length_or_size):
        yield


@contextlib.contextmanager
def _whole_stacks() -> Iterator[None]:
    """Let nodes keep all of the user's lines that made them: PyTorch keeps those of functions called `forward` only."""

    def users(_tracer: object, stack: traceback.StackSummary) -> traceback.StackSummary:
        inside = itertools.takewhile(lambda frame: frame.name != _exported.__name__, reversed(stack))
        kept = [frame for frame in inside if not _is_library(frame.filename)]
        return traceback.StackSummary.from_list(kept[::-1])

    with mock.patch.object(fx.proxy.TracerBase, "_filter_traceback_frames", users, create=True):
        yield


@contextlib.contextmanager
def _conditions() -> Iterator[list[tuple[Any, Line | None]]]:
    """Yield the conditions on sizes that the program is traced for, as they arise, with the user's line."""
    conditions: list[tuple[Any, Line | None]] = []
    evaluate = ShapeEnv.evaluate_expr

    def evaluate_and_note(self: ShapeEnv, *args: Any, **kwargs: Any) -> Any:
        known = len(self.guards)
        value = evaluate(self, *args, **kwargs)
        if len(self.guards) > known:
            frames = traceback.walk_stack(None)
            inside = itertools.takewhile(lambda frame: frame[0].f_code is not _exported.__code__, frames)
            line = _innermost((frame.f_code.co_filename, number) for frame, number in inside)
            conditions.extend((guard.expr, line) for guard in self.guards[known:])
        return value

    with mock.patch.object(ShapeEnv, "evaluate_expr", evaluate_and_note):
        yield conditions
