"""Verification: a model's outputs beside what Pyro computed, in absolute differences and in nats."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from . import _nats
from ._bundle import Bundle
from ._manifest import Tolerances
from ._reference import Reference

BATCH_SIZES = (1, 2, 7, 256)

FloatArray = NDArray[np.float32]
RunGraph = Callable[..., Sequence[FloatArray]]


@dataclasses.dataclass(frozen=True)
class Check:
    """One output, compared on all rows at all batch sizes.

    Args:
        graph: Which graph: `encoder`, `decoder`, `reconstruct`, or `model` for what takes several.
        output: The output's name, or the quantity in nats.
        max_abs_diff: The largest absolute difference from Pyro; NaN where an output is NaN.
        tolerance: What is allowed at the worst index.
        worst: The row, index and batch size that come closest to, or furthest beyond, what is allowed there.
        passed: Whether all values are finite and within tolerance.
    """

    graph: str
    output: str
    max_abs_diff: float
    tolerance: float
    worst: str
    passed: bool


@dataclasses.dataclass(frozen=True)
class Report:
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
        lines = [header] + [
            (
                check.graph,
                check.output,
                f"{check.max_abs_diff:.2e}",
                f"{check.tolerance:.2e}",
                check.worst,
                "ok" if check.passed else "FAILED",
            )
            for check in self.checks
        ]
        widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        sizes = ", ".join(map(str, BATCH_SIZES))
        verdict = "passed" if self.passed else "FAILED"
        return "\n".join([f"{self.format}: {verdict}; {self.rows} rows at batch sizes {sizes}", *table])


def verify_outputs(
    bundle: Bundle, format_name: str, encoder: RunGraph, decoder: RunGraph, reconstruct: RunGraph | None
) -> Report:
    """Run a bundle's graphs on its reference and compare.

    Args:
        bundle: Holds the reference and the tolerances.
        format_name: What is verified, for the report.
        encoder: x → z_loc, z_scale.
        decoder: z → loc_img.
        reconstruct: x, eps → loc_img; `None` in the formats that have no such graph.

    Raises:
        BundleError: The reference is missing, changed, or damaged.
    """
    reference = Reference.decode(bundle.read(bundle.manifest.reference), bundle.manifest.model)
    tolerances = bundle.manifest.tolerances
    outputs = [_outputs(reference, size, encoder, decoder, reconstruct) for size in BATCH_SIZES]
    checks = [
        _check_output(reference, tolerances, graph, output, [run[graph, output] for run in outputs])
        for graph, output in outputs[0]
    ]
    checks.append(
        _check_nats(
            reference,
            f"KL(q_pyro ‖ q_{format_name}) nats",
            tolerances.kl_nats,
            [_kl(reference, run["encoder", "z_loc"], run["encoder", "z_scale"]) for run in outputs],
        )
    )
    last = ("decoder" if reconstruct is None else "reconstruct", "loc_img")
    checks.append(
        _check_nats(
            reference,
            "ELBO drift nats",
            tolerances.elbo_nats,
            [_elbo_drift(reference, run["encoder", "z_loc"], run["encoder", "z_scale"], run[last]) for run in outputs],
        )
    )
    return Report(format_name, len(reference.case), tuple(checks))


def _outputs(
    reference: Reference, batch_size: int, encoder: RunGraph, decoder: RunGraph, reconstruct: RunGraph | None
) -> dict[tuple[str, str], FloatArray]:
    """Run all rows of the reference in batches of one size."""
    batches = list(_batches(len(reference.case), batch_size))
    encoded = [encoder(reference.x[rows]) for rows in batches]
    outputs = {
        ("encoder", "z_loc"): np.concatenate([z_loc for z_loc, _ in encoded]),
        ("encoder", "z_scale"): np.concatenate([z_scale for _, z_scale in encoded]),
        ("decoder", "loc_img"): np.concatenate([decoder(reference.z[rows])[0] for rows in batches]),
    }
    if reconstruct is not None:
        runs = [reconstruct(reference.x[rows], reference.eps[rows])[0] for rows in batches]
        outputs["reconstruct", "loc_img"] = np.concatenate(runs)
    return outputs


def _batches(rows: int, batch_size: int) -> Iterator[slice]:
    return (slice(start, start + batch_size) for start in range(0, rows, batch_size))


def _check_output(
    reference: Reference, tolerances: Tolerances, graph: str, output: str, found: Sequence[FloatArray]
) -> Check:
    expected = getattr(reference, output).astype(np.float64)
    diff = np.abs(np.stack(found).astype(np.float64) - expected)
    allowed = np.broadcast_to(tolerances.atol + tolerances.rtol * np.abs(expected), diff.shape)
    return _check(reference, graph, output, diff, allowed)


def _check_nats(reference: Reference, quantity: str, tolerance: float, found: Sequence[NDArray[np.float64]]) -> Check:
    diff = np.stack(found)
    return _check(reference, "model", quantity, diff, np.full_like(diff, tolerance))


def _check(
    reference: Reference, graph: str, output: str, diff: NDArray[np.float64], allowed: NDArray[np.float64]
) -> Check:
    """Compare `diff` with `allowed`, shape `(batch sizes, rows[, values])` each."""
    excess = np.where(np.isfinite(diff), diff - allowed, np.inf)  # NaN fails, and is the worst there is
    size, row, *value = (int(axis) for axis in np.unravel_index(np.argmax(excess), excess.shape))
    place = f"{reference.case[row]} row {row}{f' [{value[0]}]' if value else ''}, batch {BATCH_SIZES[size]}"
    return Check(
        graph,
        output,
        max_abs_diff=float(diff.max()),
        tolerance=float(allowed[(size, row, *value)]),
        worst=place,
        passed=bool((excess <= 0).all()),
    )


def _kl(reference: Reference, z_loc: FloatArray, z_scale: FloatArray) -> NDArray[np.float64]:
    with np.errstate(all="ignore"):  # outputs that are not finite come out as NaN, and fail
        return _nats.normal_kl(*(a.astype(np.float64) for a in (reference.z_loc, reference.z_scale, z_loc, z_scale)))


def _elbo_drift(
    reference: Reference, z_loc: FloatArray, z_scale: FloatArray, loc_img: FloatArray
) -> NDArray[np.float64]:
    with np.errstate(all="ignore"):  # outputs that are not finite come out as NaN, and fail
        z = z_loc + z_scale * reference.eps
        observed, latent, loc, scale = (array.astype(np.float64) for array in (reference.x, z, z_loc, z_scale))
        elbo = _nats.elbo(observed, latent, loc, scale, loc_img)
        return np.abs(elbo - reference.elbo.astype(np.float64))
