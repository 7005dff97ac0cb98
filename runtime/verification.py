"""Verification: a model's outputs beside what Pyro computed, in absolute differences and in nats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from . import nats as _nats
from .bundle import Bundle
from .errors import BundleError
from .manifest import GraphName, Tolerances
from .reference import Reference

BATCH_SIZES = (1, 2, 7, 256)

FloatArray = NDArray[np.float32]

_ROUNDING = 1e-6
"""Of an ELBO, eight times float32's own: networks that know nothing yet give ten thousand nats and more."""
_MAX_SHIFT = 0.03
"""How far all values may be off on average, of what one may: rounding goes both ways, and leaves a twentieth of it."""
_IN_DATA_UNITS = ("decoder", "reconstruct", "observation")


class Check(msgspec.Struct, frozen=True):
    """One output, compared on all rows at all batch sizes.

    Args:
        graph: Which graph, or `model` for what takes several.
        output: The output's name, or the quantity in nats.
        max_abs_diff: The largest absolute difference from Pyro, of the values out of tolerance where there are any; NaN
            where an output is NaN. Where no value is out of tolerance and only their mean is, that of the mean.
        tolerance: What is allowed where it occurs.
        worst: The row, index and batch size where it occurs.
        passed: Whether all values are finite and within tolerance, and their mean within 3 % of it.
    """

    graph: str
    output: str
    max_abs_diff: float
    tolerance: float
    worst: str
    passed: bool


class Report(msgspec.Struct, frozen=True):
    """The outcome of a verification; `str(report)` is a table.

    Args:
        format: What was verified: `onnx`, `torchscript` or `pt2`.
        rows: Number of rows compared, at each of `BATCH_SIZES`.
        checks: One for each output and each quantity in nats.
    """

    format: str
    rows: int
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        header = ("graph", "output", "max_abs_diff", "tolerance", "worst at", "")
        lines = [header]
        for check in self.checks:
            diff, tolerance = f"{check.max_abs_diff:.2e}", f"{check.tolerance:.2e}"
            lines.append((check.graph, check.output, diff, tolerance, check.worst, "ok" if check.passed else "FAILED"))
        widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        verdict = f"{'passed' if self.passed else 'FAILED'}; {self.rows} rows at batch sizes"
        return "\n".join([f"{self.format}: {verdict} {', '.join(map(str, BATCH_SIZES))}", *table])


class RunnableGraph(Protocol):
    """A function of a bundle, whatever runs it."""

    @property
    def inputs(self) -> Sequence[str]:
        """Names of its inputs, in order."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of what it returns, in order."""

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, FloatArray]:
        """Run it on its inputs, picked from `arrays` by name, shape `(batch, ...)` each; return its outputs by name."""


def verify_graphs(
    bundle: Bundle,
    format_name: str,
    graphs: Mapping[GraphName, RunnableGraph],
    elbo: RunnableGraph | None = None,
) -> Report:
    """Run a bundle's graphs on its reference and compare.

    Args:
        bundle: Holds the reference and the tolerances.
        format_name: What is verified, for the report.
        graphs: What is compared, output by output; where there is an `encoder`, also its KL in nats, and where there is
            a `decoder` too, the ELBO's drift.
        elbo: Computes the terms of the ELBO where `graphs` has none for it.

    Raises:
        BundleError: The reference is missing, changed, or damaged.
    """
    reference = Reference.of(bundle)
    tolerances = bundle.manifest.tolerances
    checks = []
    for name, graph in graphs.items():
        runs = [run_rows(graph, reference.arrays, size) for size in BATCH_SIZES]
        checks += [_check_output(reference, tolerances, name, output, runs) for output in graph.outputs]
    if "encoder" in graphs:
        encoded = [_encoded(reference, size, graphs["encoder"]) for size in BATCH_SIZES]
        kl = [_kl(reference, here) for here in encoded]
        kl_allowed = np.full(len(reference.case), tolerances.kl_nats)
        checks.append(_check_nats(reference, f"KL(q_pyro ‖ q_{format_name}) nats", kl_allowed, kl))
        if "decoder" in graphs:
            chain = (graphs["decoder"], elbo or graphs["elbo"])
            drift = [_drift(reference, size, here, *chain) for size, here in zip(BATCH_SIZES, encoded, strict=True)]
            elbo_allowed = tolerances.elbo_nats + _ROUNDING * np.abs(reference.elbo)
            checks.append(_check_nats(reference, "ELBO drift nats", elbo_allowed, drift))
    return Report(format_name, len(reference.case), tuple(checks))


def run_rows(graph: RunnableGraph, arrays: Mapping[str, NDArray[Any]], batch_size: int) -> dict[str, FloatArray]:
    """Run a graph on all rows, in batches of one size."""
    missing = [name for name in graph.inputs if name not in arrays]
    if missing:
        raise BundleError(f"reference.npz holds no {', '.join(missing)}; export the model again")
    inputs = {name: arrays[name] for name in graph.inputs}
    starts = range(0, len(next(iter(inputs.values()))), batch_size)
    batches = [graph({name: array[start : start + batch_size] for name, array in inputs.items()}) for start in starts]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in graph.outputs}


def _encoded(reference: Reference, batch_size: int, encoder: RunnableGraph) -> dict[str, NDArray[Any]]:
    """Return what a caller has once the encoder has run: the inputs, and q(z|x)."""
    here = {name: array for name, array in reference.arrays.items() if name in {"x", "y"} or name.startswith("eps")}
    return {**here, **run_rows(encoder, here, batch_size)}


def _kl(reference: Reference, here: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Return KL(q_pyro ‖ q_here) of each row, summed over the levels."""
    levels = [(name, name.replace("loc", "scale")) for name in here if name.startswith("z_loc")]
    with np.errstate(all="ignore"):  # outputs that are not finite come out as NaN, and fail
        kls = [_nats.normal_kl(reference[loc], reference[scale], here[loc], here[scale]) for loc, scale in levels]
    return np.sum(kls, axis=0)


def _drift(
    reference: Reference,
    batch_size: int,
    here: Mapping[str, NDArray[Any]],
    decoder: RunnableGraph,
    elbo: RunnableGraph,
) -> NDArray[np.float64]:
    """Return how far the ELBO of each row is from Pyro's, the graphs fed from one another as in use."""
    with np.errstate(all="ignore"):  # outputs that are not finite come out as NaN, and fail
        arrays = {**here, "z": here["z_loc"] + here["z_scale"] * reference["eps"]}
        arrays.update(run_rows(decoder, arrays, batch_size))
        terms = run_rows(elbo, arrays, batch_size)
        drift = terms["log_px_z"].astype(np.float64) + terms["log_pz"] - terms["log_qz_x"] - reference.elbo
    return np.abs(drift)


def _check_output(
    reference: Reference, tolerances: Tolerances, graph: str, output: str, runs: Sequence[Mapping[str, FloatArray]]
) -> Check:
    expected = reference[output].astype(np.float64)
    found = np.stack([run[output] for run in runs])
    if found.shape[1:] != expected.shape:
        raise BundleError(
            f"reference.npz does not fit {graph}: {output} is {expected.shape}, the graph gives {found.shape[1:]}"
        )
    signed = found.astype(np.float64) - expected
    atol = tolerances.atol * _summands(reference, output) * _units(reference, graph, expected.shape)
    allowed = np.broadcast_to(atol + tolerances.rtol * np.abs(expected), signed.shape)
    check = _check(reference, graph, output, np.abs(signed), allowed)
    if not check.passed or graph == "elbo":
        return check
    parts = np.divide(signed, allowed, out=np.zeros_like(signed), where=allowed > 0)
    shifts = np.abs(parts.reshape(len(runs), -1).mean(1))
    if shifts.max() <= _MAX_SHIFT:
        return check
    place = f"mean of all rows, batch {BATCH_SIZES[int(shifts.argmax())]}"
    unit = float(allowed.mean())
    return Check(graph, output, unit * float(shifts.max()), unit * _MAX_SHIFT, place, passed=False)


def _units(reference: Reference, graph: str, shape: tuple[int, ...]) -> NDArray[np.float64] | float:
    """Of which size the values of an observation are, column by column where they are above 1.

    A column of a table in thousands is off by a thousand times what a value in [0, 1] is: both are computed of numbers
    near 1, which the last operation in a graph brings into the data's units.
    """
    if graph not in _IN_DATA_UNITS:
        return 1.0
    same = [reference[name] for name in ("loc_img", "scale", "obs") if name in reference.arrays]
    sizes = [np.abs(array.astype(np.float64)).max(0) for array in same if array.shape == shape]
    return np.maximum(1.0, np.max(sizes, axis=0)) if sizes else 1.0


def _summands(reference: Reference, output: str) -> int:
    """Of how many values an output is the sum: each may be off by `atol`, and near zero a sum is no more exact."""
    if output == "log_px_z":
        return int(reference["x"].shape[1])
    if output in {"log_pz", "log_qz_x"}:
        return sum(array.shape[1] for name, array in reference.arrays.items() if name.startswith("z_loc"))
    return 1


def _check_nats(
    reference: Reference, quantity: str, allowed: NDArray[np.float64], found: Sequence[NDArray[np.float64]]
) -> Check:
    """Compare a quantity of each row with what is allowed of it."""
    diff = np.stack(found)
    return _check(reference, "model", quantity, diff, np.broadcast_to(allowed, diff.shape))


def _check(
    reference: Reference, graph: str, output: str, diff: NDArray[np.float64], allowed: NDArray[np.float64]
) -> Check:
    """Compare `diff` with `allowed`, shape `(batch sizes, rows[, values])` each."""
    failed = ~(diff <= allowed)  # NaN is not within anything
    shown = np.where(failed, np.nan_to_num(diff, nan=np.inf), -1) if failed.any() else diff
    size, row, *value = (int(axis) for axis in np.unravel_index(np.argmax(shown), shown.shape))
    place = f"{reference.case[row]} row {row}{f' {value}' if value else ''}, batch {BATCH_SIZES[size]}"
    return Check(
        graph,
        output,
        max_abs_diff=float(diff[(size, row, *value)]),
        tolerance=float(allowed[(size, row, *value)]),
        worst=place,
        passed=not failed.any(),
    )
