"""Verification of networks in a lower precision: not each number counts, but what the model is worth with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .manifest import GraphName, ReducedPrecision
from .reference import Reference
from .verification import BATCH_SIZES, Check, Report, RunnableGraph, run_rows


def verify_reduced(bundle: Bundle, precision: ReducedPrecision, graphs: Mapping[GraphName, RunnableGraph]) -> Report:
    """Run a bundle's graphs of a precision on its reference, and compare the mean ELBO of its samples with Pyro's.

    Args:
        bundle: Holds the reference, and what may be lost.
        precision: That of the graphs.
        graphs: All of the model's.

    Raises:
        BundleError: The reference is missing, changed, or damaged.
    """
    reference = Reference.of(bundle)
    spec = bundle.manifest.precisions[precision]
    checks = [
        _difference(reference, name, output, run_rows(graphs[name], reference.arrays, BATCH_SIZES[-1])[output])
        for name in spec.graphs
        for output in graphs[name].outputs
    ]
    samples = reference.case == "sample"
    losses = [float((reference.elbo - _elbo(reference, graphs, size))[samples].mean()) for size in BATCH_SIZES]
    # The size at which the most is lost; where a loss is NaN, that one.
    size, worst = max(zip(BATCH_SIZES, losses, strict=True), key=lambda pair: np.nan_to_num(pair[1], nan=np.inf))
    passed = all(loss <= spec.limit_nats for loss in losses)
    checks.append(Check("model", "mean ELBO lost, nats", worst, spec.limit_nats, f"batch {size}", passed))
    return Report(f"onnx {precision}", len(reference.case), tuple(checks))


def _elbo(reference: Reference, graphs: Mapping[GraphName, RunnableGraph], batch_size: int) -> NDArray[np.float64]:
    """Return the ELBO of each row with the reference's noise, the graphs fed from one another as in use."""
    arrays: dict[str, NDArray[Any]] = {
        name: array for name, array in reference.arrays.items() if name in {"x", "y"} or name.startswith("eps")
    }
    with np.errstate(all="ignore"):  # outputs that are not finite come out as NaN, and fail
        arrays |= run_rows(graphs["encoder"], arrays, batch_size)
        arrays["z"] = arrays["z_loc"] + arrays["z_scale"] * arrays["eps"]
        arrays |= run_rows(graphs["decoder"], arrays, batch_size)
        terms = run_rows(graphs["elbo"], arrays, batch_size)
        elbo: NDArray[np.float64] = terms["log_px_z"].astype(np.float64) + terms["log_pz"] - terms["log_qz_x"]
    return elbo


def _difference(reference: Reference, graph: str, output: str, found: NDArray[np.float32]) -> Check:
    """Say how far an output is from Pyro's; any distance will do that is finite."""
    diff = np.abs(found.astype(np.float64) - reference[output])
    row, *value = (int(axis) for axis in np.unravel_index(np.argmax(np.nan_to_num(diff, nan=np.inf)), diff.shape))
    place = f"{reference.case[row]} row {row}{f' {value}' if value else ''}, batch {BATCH_SIZES[-1]}"
    return Check(graph, output, float(diff[(row, *value)]), np.inf, place, bool(np.isfinite(diff).all()))
