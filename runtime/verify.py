"""Verification: a model's outputs are compared with Pyro's for the same inputs and noise, from `reference.npz`."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from .arrays import ArrayHeader, Npz
from .bundle import Bundle
from .errors import BundleError, InputError
from .manifest import GraphName, ReducedPrecision, TensorSpec, Tolerances, tensor

BATCH_SIZES = (1, 2, 7, 256)

FloatArray = NDArray[np.float32]
_Floats = NDArray[np.floating[Any]]

SAMPLE = "sample"
_CASE = "case"
_CASES = (SAMPLE, "outlier", "lowest", "highest", "zeros", "ones")  # the last two are those of older bundles
_TERMS = ("log_px_z", "log_pz", "log_qz_x")
_INPUTS = ("x", "y", "eps")  # and other noise, whose names begin so
_MAX_ROWS = 1024  # the exporter writes 256
_VALUE_BYTES, _TEXT_BYTES, _OVERHEAD_BYTES = 8, 64, 2**16
_ROUNDING = 1e-6
"""Relative tolerance of an ELBO, eight times float32's: untrained networks give ten thousand nats and more."""
_MAX_SHIFT = 0.03
"""Limit of the mean signed difference, as a part of one value's tolerance: rounding errors cancel, a shift does not."""
_ROUNDINGS = 4
"""What a value may be off, in multiples of its own rounding, see `Reference`."""
_IN_DATA_UNITS = ("decoder", "reconstruct", "observation")


def rounding_name(graph: str, output: str) -> str:
    """Return the name of the array that holds the rounding of an output, see `Reference`."""
    return f"rounding.{graph}.{output}"


def rounding_names(graphs: Mapping[GraphName, Sequence[TensorSpec]]) -> list[str]:
    """Return the names of all arrays of roundings, for a bundle with these graphs, each with its outputs."""
    names = [rounding_name(graph, output.name) for graph, outputs in graphs.items() for output in outputs]
    if "encoder" in graphs:
        names.append(KL_ROUNDING)
        names += [ELBO_ROUNDING] * ("decoder" in graphs)
    return names


KL_ROUNDING, ELBO_ROUNDING = rounding_name("model", "kl_nats"), rounding_name("model", "elbo_nats")


class Reference(msgspec.Struct, frozen=True, eq=False):
    """Inputs of all graphs, and Pyro's outputs for them.

    Rows of the data far from the others are outliers; there Pyro's numbers may overflow float32, and the outputs hold
    NaN or infinity. All inputs are finite, and everything in the rows of samples.

    How exactly float32 determines a value depends on the row. `rounding.<graph>.<output>` says it: how far Pyro's own
    output moves when each weight changes at random by up to 2**-20 of itself, eight times float32's precision, the
    largest of several such moves and of the row's values; of a value v in parts of `unit(...) + |v|`, of the KL and the
    ELBO (of the graph `model`) in nats. It is infinite where the output overflows with some of these weights only.

    Args:
        case: What each row is: a `sample`; an `outlier` of the data; or the `lowest` or `highest` value of each column
            of the data; shape `(rows,)`.
        arrays: Inputs and outputs by name, float32 or int64, shape `(rows, ...)` each; `z` = z_loc + z_scale * eps,
            `log_px_z`, `log_pz` and `log_qz_x` from Pyro's own traces, in nats; and the roundings, shape `(rows,)`,
            which older bundles do not have.
    """

    case: NDArray[np.str_]
    arrays: Mapping[str, NDArray[Any]]

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return an array.

        Raises:
            BundleError: The reference has none of this name.
        """
        if name not in self.arrays:
            raise BundleError(f"reference.npz holds no {name}; export the model again")
        return self.arrays[name]

    @property
    def elbo(self) -> NDArray[np.float64]:
        """log_px_z + log_pz - log_qz_x of each row, in nats."""
        with np.errstate(invalid="ignore"):  # infinite terms of both signs
            elbo: NDArray[np.float64] = self["log_px_z"].astype(np.float64) + self["log_pz"] - self["log_qz_x"]
        return elbo

    def kl(self, here: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """Return KL(q_pyro ‖ q_here) of each row in nats, summed over the levels, for `z_loc` and `z_scale` of each.

        It is NaN where one of the two overflows.
        """
        levels = [(name, name.replace("loc", "scale")) for name in here if name.startswith("z_loc")]
        with np.errstate(all="ignore"):
            kls = [normal_kl(self[loc], self[scale], here[loc], here[scale]) for loc, scale in levels]
        return np.sum(kls, axis=0)

    @property
    def is_sample(self) -> NDArray[np.bool_]:
        """Which rows are samples."""
        return self.case == SAMPLE

    def samples(self) -> Reference:
        """Return the rows that are samples."""
        return Reference(
            self.case[self.is_sample], {name: array[self.is_sample] for name, array in self.arrays.items()}
        )

    def rounding(self, name: str) -> NDArray[np.float64]:
        """Return an array of roundings; zeros if the bundle is older than they are."""
        return self.arrays.get(name, np.zeros(len(self.case), np.float32)).astype(np.float64)

    def unit(self, graph: str, output: str) -> NDArray[np.float64] | float:
        """Return what the absolute tolerance of an output is a part of: 1, or one number for each column.

        A term of the ELBO sums values, each of which may be off. The last operation of a network may scale numbers near
        1 to the data's units: a column in thousands has a thousand times the rounding error of one in [0, 1].
        """
        if output in _TERMS and "z_loc" not in self.arrays:  # of a program that is used by its sites
            return float(sum(array[0].size for name, array in self.arrays.items() if "." not in name))
        if output == "log_px_z":
            return float(self["x"].shape[1])
        if output in {"log_pz", "log_qz_x"}:
            return float(sum(array.shape[1] for name, array in self.arrays.items() if name.startswith("z_loc")))
        if graph not in _IN_DATA_UNITS:
            return 1.0
        shape = self[output].shape
        same = [self[name] for name in ("loc_img", "scale", "obs") if name in self.arrays]
        sizes = [np.abs(each[self.is_sample].astype(np.float64)).max(0) for each in same if each.shape == shape]
        return np.maximum(1.0, np.max(sizes, axis=0)) if sizes else 1.0

    def only(self, names: Collection[str]) -> Reference:
        """Return the reference with these arrays only."""
        return Reference(self.case, {name: array for name, array in self.arrays.items() if name in names})

    def encode(self) -> bytes:
        """Return the content of `reference.npz`."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{_CASE: self.case, **self.arrays})  # type: ignore[arg-type]  # names are not options
        return buffer.getvalue()

    @staticmethod
    def of(bundle: Bundle) -> Reference:
        """Read a bundle's reference.

        Raises:
            BundleError: It is missing, changed or damaged, or does not fit the manifest.
        """
        graphs = bundle.manifest.graphs.values()
        tensors = {spec.name: spec for graph in graphs for spec in (*graph.inputs, *graph.outputs)}
        if tensors:
            outputs = {name: graph.outputs for name, graph in bundle.manifest.graphs.items()}
            tensors |= {name: tensor(name) for name in rounding_names(outputs)}
        reference = bundle.manifest.reference
        row_bytes = sum(_TEXT_BYTES + math.prod(spec.row_shape) * _VALUE_BYTES for spec in tensors.values())
        if tensors and reference.size_bytes > _MAX_ROWS * row_bytes + _OVERHEAD_BYTES:
            raise _damaged(f"it has {reference.size_bytes} bytes, more than the inputs and outputs of the graphs")
        return Reference.decode(bundle.read(reference), tensors)

    @staticmethod
    def decode(content: bytes, tensors: Mapping[str, TensorSpec] | None = None) -> Reference:
        """Read `reference.npz`.

        Args:
            content: The file.
            tensors: The graphs' inputs and outputs by name; anything else is refused. If it is `None` or empty, any
                arrays are allowed.

        Raises:
            BundleError: It is damaged.
        """
        npz, headers = _open(content)
        case = headers.pop(_CASE, None)
        if case is None or len(case.shape) != 1 or case.dtype.kind != "U" or not 0 < case.shape[0] <= _MAX_ROWS:
            raise _damaged(f"it must say for 1 to {_MAX_ROWS} rows which case each of them is")
        for name, entry in headers.items():
            spec = (tensors or {}).get(name)
            if entry.dtype.kind == "U" or entry.shape[0] != case.shape[0]:
                raise _damaged(
                    f"{name!a} must be float32 or int64 with {case.shape[0]} rows, got {entry.dtype} of shape "
                    f"{entry.shape}"
                )
            if tensors and (spec is None or (entry.dtype.name, entry.shape[1:]) != (spec.dtype, spec.row_shape)):
                expected = "nothing of this name" if spec is None else f"{spec.dtype} with rows of {spec.row_shape}"
                raise _damaged(f"{name!a} must be {expected}, got {entry.dtype} of shape {entry.shape}")
        try:
            cases = npz[_CASE]
            arrays = {name: npz[name] for name in headers}
        except InputError as error:
            raise _damaged(str(error)) from error
        if not np.isin(cases, _CASES).all() or SAMPLE not in cases:
            raise _damaged(f"each row must be one of {', '.join(_CASES)}, and one at least a {SAMPLE}")
        reference = Reference(cases, arrays)
        for name, array in arrays.items():
            if not np.isfinite(
                array if name.startswith(_INPUTS) and "." not in name else array[reference.is_sample]
            ).all():
                raise _damaged(f"{name!a} holds NaN or infinity")
            if name.startswith("rounding.") and not (array >= 0).all():
                raise _damaged(f"{name!a} holds NaN or a negative number")
        return reference


def _open(content: bytes) -> tuple[Npz, dict[str, ArrayHeader]]:
    """Return the archive, and the headers of its arrays: float32, int64 or text in rows."""
    try:
        npz = Npz(io.BytesIO(content), untrusted=True)
        headers = {name: npz.header(name) for name in npz}
    except InputError as error:
        raise _damaged(str(error)) from error
    for name, header in headers.items():
        known = header.dtype.kind == "U" or header.dtype in {np.dtype(np.float32), np.dtype(np.int64)}
        if not known or not header.shape or header.fortran_order:
            raise _damaged(f"{name!a} is no array of float32, int64 or text in rows")
    return npz, headers


def _damaged(why: str) -> BundleError:
    return BundleError(f"reference.npz is damaged: {why}; export the model again")


class Check(msgspec.Struct, frozen=True):
    """One output, compared on all rows at all batch sizes.

    Args:
        graph: Which graph, or `model` for what takes several.
        output: The output's name, or the quantity in nats.
        max_abs_diff: The largest absolute difference from Pyro, or from the values out of tolerance if there are any;
            NaN if an output is NaN. If only the mean of the differences is out of tolerance, that mean.
        tolerance: The tolerance where it occurs.
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
    """A graph of a bundle, in any format that can be run."""

    @property
    def inputs(self) -> Sequence[str]:
        """Names of its inputs, in order."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of its outputs, in order."""

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, FloatArray]:
        """Run it on its inputs, taken from `arrays` by name, shape `(batch, ...)` each; return its outputs by name."""


def verify_graphs(
    bundle: Bundle,
    format_name: str,
    graphs: Mapping[GraphName, RunnableGraph],
    others: Mapping[GraphName, RunnableGraph] | None = None,
) -> Report:
    """Run a bundle's graphs on its reference and compare.

    Args:
        bundle: Holds the reference and the tolerances.
        format_name: What is verified, for the report.
        graphs: What is compared, output by output; where there is an `encoder`, also its KL in nats, and where there is
            a `decoder` too, the ELBO's drift.
        others: Further graphs, not compared: those that the ELBO needs and `graphs` does not have.

    Raises:
        BundleError: The reference is missing, changed, or damaged.
    """
    reference = Reference.of(bundle)
    tolerances = bundle.manifest.tolerances
    checks = []
    for name, graph in graphs.items():
        runs = [run_rows(graph, reference.arrays, size) for size in BATCH_SIZES]
        checks += [_check_output(reference, tolerances, name, output, runs) for output in graph.outputs]
    all_graphs = {**(others or {}), **graphs}
    if bundle.manifest.model.program is not None:
        elbos = [_elbo_by_site(reference, size, all_graphs) for size in BATCH_SIZES]
        return Report(format_name, len(reference.case), (*checks, _drift(reference, tolerances, elbos)))
    if "encoder" in graphs:
        encoded = [_encoded(reference, size, graphs["encoder"]) for size in BATCH_SIZES]
        kl = np.stack([reference.kl(here) for here in encoded])
        kl[:, np.isnan(reference.kl(reference.arrays))] = 0  # Pyro's own q overflows, which its outputs were judged by
        # A KL grows with the square of the differences.
        kl_allowed = np.maximum(tolerances.kl_nats, _ROUNDINGS**2 * reference.rounding(KL_ROUNDING))
        checks.append(_check(reference, "model", f"KL(q_pyro ‖ q_{format_name}) nats", kl, kl_allowed))
        if "decoder" in graphs:
            chain = (all_graphs["decoder"], all_graphs["elbo"])
            elbos = [_elbo(reference, size, here, *chain) for size, here in zip(BATCH_SIZES, encoded, strict=True)]
            checks.append(_drift(reference, tolerances, elbos))
    return Report(format_name, len(reference.case), tuple(checks))


def _drift(reference: Reference, tolerances: Tolerances, elbos: Sequence[NDArray[np.float64]]) -> Check:
    """Compare the ELBO of each row with Pyro's; `elbos` has one array for each batch size."""
    drift = np.abs(_signed(reference.elbo, np.stack(elbos)))
    allowed = tolerances.elbo_nats + _ROUNDING * np.abs(_finite(reference.elbo))
    allowed = np.maximum(allowed, _ROUNDINGS * reference.rounding(ELBO_ROUNDING))
    return _check(reference, "model", "ELBO drift nats", drift, allowed)


def _elbo_by_site(
    reference: Reference, batch_size: int, graphs: Mapping[GraphName, RunnableGraph]
) -> NDArray[np.float64]:
    """Return the ELBO of each row of a program; each graph gets the outputs of those before it."""
    arrays = dict(reference.arrays)
    with np.errstate(all="ignore"):  # outputs that are not finite come out as NaN, and fail
        for name in ("encoder", "sample", "decoder", "elbo"):
            if name in graphs:
                arrays.update(run_rows(graphs[name], arrays, batch_size))
        return Reference(reference.case, arrays).elbo


def verify_reduced(bundle: Bundle, precision: ReducedPrecision, graphs: Mapping[GraphName, RunnableGraph]) -> Report:
    """Run a bundle's graphs of a precision on the samples of its reference, and compare their mean ELBO with Pyro's.

    Args:
        bundle: Holds the reference, and what may be lost.
        precision: That of the graphs.
        graphs: All of the model's.

    Raises:
        BundleError: The reference is missing, changed, or damaged.
    """
    reference = Reference.of(bundle).samples()
    spec = bundle.manifest.precisions[precision]
    checks = [
        _difference(reference, name, output, run_rows(graphs[name], reference.arrays, BATCH_SIZES[-1])[output])
        for name in spec.graphs
        for output in graphs[name].outputs
    ]
    losses = []
    for size in BATCH_SIZES:
        if bundle.manifest.model.program is not None:
            here = _elbo_by_site(reference, size, graphs)
        else:
            encoded = _encoded(reference, size, graphs["encoder"])
            here = _elbo(reference, size, encoded, graphs["decoder"], graphs["elbo"])
        losses.append(float((reference.elbo - here).mean()))
    # The size at which the most is lost; where a loss is NaN, that one.
    size, worst = max(zip(BATCH_SIZES, losses, strict=True), key=lambda pair: np.nan_to_num(pair[1], nan=np.inf))
    passed = all(loss <= spec.limit_nats for loss in losses)
    checks.append(Check("model", "mean ELBO lost, nats", worst, spec.limit_nats, f"batch {size}", passed))
    return Report(f"onnx {precision}", len(reference.case), tuple(checks))


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
    """Return the inputs of the model, and q(z|x) from the encoder."""
    here = {name: array for name, array in reference.arrays.items() if name in {"x", "y"} or name.startswith("eps")}
    return {**here, **run_rows(encoder, here, batch_size)}


def _elbo(
    reference: Reference,
    batch_size: int,
    here: Mapping[str, NDArray[Any]],
    decoder: RunnableGraph,
    elbo: RunnableGraph,
) -> NDArray[np.float64]:
    """Return the ELBO of each row with the reference's noise; each graph gets the outputs of those before it."""
    with np.errstate(all="ignore"):  # outputs that are not finite come out as NaN, and fail
        arrays = {**here, "z": here["z_loc"] + here["z_scale"] * reference["eps"]}
        arrays.update(run_rows(decoder, arrays, batch_size))
        terms = run_rows(elbo, arrays, batch_size)
        elbo_here: NDArray[np.float64] = terms["log_px_z"].astype(np.float64) + terms["log_pz"] - terms["log_qz_x"]
    return elbo_here


def _check_output(
    reference: Reference, tolerances: Tolerances, graph: str, output: str, runs: Sequence[Mapping[str, FloatArray]]
) -> Check:
    expected = reference[output].astype(np.float64)
    found = np.stack([run[output] for run in runs])
    if found.shape[1:] != expected.shape:
        raise BundleError(
            f"reference.npz does not fit {graph}: {output} is {expected.shape}, the graph gives {found.shape[1:]}"
        )
    unit, rounding = reference.unit(graph, output), reference.rounding(rounding_name(graph, output))
    size = np.abs(_finite(expected))
    by_rounding = _ROUNDINGS * rounding.reshape(-1, *[1] * (expected.ndim - 1)) * (unit + size)
    allowed = np.maximum(tolerances.atol * unit + tolerances.rtol * size, by_rounding)
    signed = _signed(expected, found)
    check = _check(reference, graph, output, np.abs(signed), allowed)
    if not check.passed or graph == "elbo":
        return check
    judged = (allowed > 0) & np.isfinite(allowed) & np.isfinite(expected)
    parts = np.divide(signed, allowed, out=np.zeros_like(signed), where=judged)
    shifts = np.abs(parts.reshape(len(runs), -1).mean(1))
    if shifts.max() <= _MAX_SHIFT:
        return check
    place = f"mean of all rows, batch {BATCH_SIZES[int(shifts.argmax())]}"
    mean = float(allowed[judged].mean())
    return Check(graph, output, mean * float(shifts.max()), mean * _MAX_SHIFT, place, passed=False)


def _signed(expected: NDArray[np.float64], found: _Floats) -> NDArray[np.float64]:
    """Return found - expected, shape `(batch sizes, rows[, values])`, for `expected` without the first axis.

    In a row that overflows in Pyro's numbers it is 0 if the row overflows in those found too, and else infinite. Which
    of its values overflow, and whether to NaN or infinity, depends on the order of the operations.
    """
    apart = (-1, len(expected), *[1] * (expected.ndim - 1))  # a number for each row, and with it each value
    overflows = ~np.isfinite(expected.reshape(len(expected), -1)).all(1).reshape(apart)
    too = ~np.isfinite(found.reshape(len(found), len(expected), -1)).all(2).reshape(apart)
    with np.errstate(invalid="ignore"):
        signed: NDArray[np.float64] = found.astype(np.float64) - expected
    return np.where(overflows, np.where(too, 0.0, np.inf), signed)


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values with 0 in place of NaN and infinity."""
    return np.where(np.isfinite(values), values, 0.0)


def _check(
    reference: Reference, graph: str, output: str, diff: NDArray[np.float64], allowed: NDArray[np.float64]
) -> Check:
    """Compare `diff`, shape `(batch sizes, rows[, values])`, with `allowed`, which has no first axis.

    Where all is allowed, because float32 does not determine the value, NaN is too.
    """
    allowed = np.broadcast_to(allowed, diff.shape)
    diff = np.where(np.isinf(allowed), 0.0, diff)
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


def _difference(reference: Reference, graph: str, output: str, found: NDArray[np.float32]) -> Check:
    """Compare an output with Pyro's; it passes if it is finite."""
    diff = np.abs(found.astype(np.float64) - reference[output])
    row, *value = (int(axis) for axis in np.unravel_index(np.argmax(np.nan_to_num(diff, nan=np.inf)), diff.shape))
    place = f"{reference.case[row]} row {row}{f' {value}' if value else ''}, batch {BATCH_SIZES[-1]}"
    return Check(graph, output, float(diff[(row, *value)]), np.inf, place, bool(np.isfinite(diff).all()))


def normal_kl(p_loc: _Floats, p_scale: _Floats, q_loc: _Floats, q_scale: _Floats) -> NDArray[np.float64]:
    """Return KL(N(p_loc, p_scale²) ‖ N(q_loc, q_scale²)) summed over the last axis, in nats, computed in float64."""
    p_loc, p_scale, q_loc, q_scale = (array.astype(np.float64) for array in (p_loc, p_scale, q_loc, q_scale))
    # (r² - 1)/2 - log r with r = p_scale / q_scale, by log1p: near r = 1 the plain form loses all its digits.
    excess = (p_scale - q_scale) / q_scale
    shape_part = 0.5 * excess * (2 + excess) - np.log1p(excess)
    divergence: NDArray[np.float64] = shape_part + 0.5 * ((p_loc - q_loc) / q_scale) ** 2
    return divergence.sum(-1)
