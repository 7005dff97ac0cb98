"""Two runs side by side: which choices differ, what came of them, and what of that may be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .reading import same_samples
from .summary import Evaluated, RunSummary

_NO_PART_OF_TEST_SET = frozenset({"num_train", "num_validation", "class_names"})

_OBJECTIVE = ("beta", "beta_warmup", "free_bits")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number of both runs.

    Args:
        name: With its unit.
        a: The first run's, `None` where it has none.
        b: The second run's.
        comparable: Whether both measure the same.
    """

    name: str
    a: float | None
    b: float | None
    comparable: bool = True

    @property
    def difference(self) -> float | None:
        """The second less the first; `None` where one is missing, or where it would mean nothing."""
        return self.b - self.a if self.comparable and self.a is not None and self.b is not None else None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` finds.

    Args:
        options: Where they differ: both values, by `section.name`; `None` for what a run does not know.
        metrics: Those that at least one of the runs has.
        notes: Why numbers cannot be compared, or not as they stand; sentences.
    """

    options: Mapping[str, tuple[Any, Any]]
    metrics: tuple[Metric, ...]
    notes: tuple[str, ...]


def compare(a: RunSummary, b: RunSummary) -> Comparison:
    """Compare two runs, of which neither is damaged."""
    limits = _limits(a, b)
    return Comparison(_differing(a, b), _metrics(a, b, comparable=not limits), (*limits, *_remarks(a, b)))


def _differing(a: RunSummary, b: RunSummary) -> dict[str, tuple[Any, Any]]:
    first, second = _flat(a), _flat(b)
    names = dict.fromkeys([*first, *second])
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}


def _flat(run: RunSummary) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, names in run.options.items() for name, value in names.items()}


def _limits(a: RunSummary, b: RunSummary) -> list[str]:
    """Return why the ELBOs of two runs measure different things; nothing where they do not."""
    both = {
        "binarization": (_option(a, "training", "binarize"), _option(b, "training", "binarize")),
        "likelihood": (_likelihood(a), _likelihood(b)),
        "condition": (_condition(a), _condition(b)),
    }
    first, second = _data(a), _data(b)
    both |= {f"data's {name}": (first[name], second[name]) for name in first if name in second}
    limits = [
        f"The ELBOs are not comparable: the {what} is {x} in {a.name}, {y} in {b.name}."
        for what, (x, y) in both.items()
        if x != y
    ]
    if not limits and not same_samples(a.path, b.path):  # parts of the same data, say, that were drawn otherwise
        limits.append("The ELBOs are not comparable: the test observations are others.")
    return limits


def _remarks(a: RunSummary, b: RunSummary) -> list[str]:
    remarks = [
        f"{run.name} is {run.state}: epoch {run.last.epoch if run.last else 0} of {run.epochs}."
        for run in (a, b)
        if run.state != "finished"
    ]
    if None not in {a.num_particles, b.num_particles} and a.num_particles != b.num_particles:
        remarks.append(
            f"The test ELBOs are means of other numbers of particles, {a.num_particles} and {b.num_particles}: "
            "they estimate the same, that of fewer with more noise."
        )
    if not _same_objective(a, b):
        remarks.append("The training losses are not comparable: other beta, beta_warmup or free_bits.")
    first, second = _test(a).iw_particles, _test(b).iw_particles
    if first and second and first != second:
        remarks.append(
            f"The importance-weighted bounds are not comparable: {first} and {second} particles, more are tighter."
        )
    return remarks


def _metrics(a: RunSummary, b: RunSummary, *, comparable: bool) -> tuple[Metric, ...]:
    x, y = _test(a), _test(b)
    same_bound = comparable and x.iw_particles == y.iw_particles
    same_loss = comparable and _same_objective(a, b)
    metrics = (
        Metric("test_elbo_nats", a.test_elbo_nats, b.test_elbo_nats, comparable),
        Metric("test_reconstruction_nats", x.reconstruction_nats, y.reconstruction_nats, comparable),
        Metric("test_kl_nats", x.kl_nats, y.kl_nats, comparable),
        Metric("test_iw_bound_nats", x.iw_bound_nats, y.iw_bound_nats, same_bound),
        Metric("active_units", x.active_units, y.active_units),
        Metric("validation_elbo_nats", a.validation_elbo_nats, b.validation_elbo_nats, comparable),
        Metric("train_loss_nats", _train_loss(a), _train_loss(b), same_loss),
        Metric("epochs", len(a.lines), len(b.lines)),
        Metric("training_seconds", _seconds(a), _seconds(b)),
    )
    return tuple(metric for metric in metrics if (metric.a, metric.b) != (None, None))


def _data(run: RunSummary) -> dict[str, Any]:
    """Return what the test set is known by."""
    shape = {"shape": "x".join(map(str, run.model.data_shape))} if run.model else {}
    options = run.options["dataset"].items()
    return shape | {name: value for name, value in options if name not in _NO_PART_OF_TEST_SET}


def _likelihood(run: RunSummary) -> str:
    if run.model is None:
        return ""
    levels = f" of {run.model.levels} levels" if run.model.likelihood == "categorical" else ""
    return run.model.likelihood + levels


def _condition(run: RunSummary) -> str:
    return "p(x|y)" if run.model and run.model.num_classes else "p(x)"


def _same_objective(a: RunSummary, b: RunSummary) -> bool:
    return all(_option(a, "training", name) == _option(b, "training", name) for name in _OBJECTIVE)


def _option(run: RunSummary, section: str, name: str) -> Any:
    return run.options[section].get(name)


def _test(run: RunSummary) -> Evaluated:
    return run.evaluations.test if run.evaluations else Evaluated()


def _train_loss(run: RunSummary) -> float | None:
    return run.last.train_loss_nats if run.last else None


def _seconds(run: RunSummary) -> float | None:
    return sum(line.epoch_seconds for line in run.lines) if run.lines else None
