"""Whatever a caller hands in as a number: what it gives as a plain one, or an error that names the argument."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgevae import InputError, Model, Noise, load
from tests.conftest import REPOSITORY
from tests.runtime.test_any_input import blank, drawn_grid, loaded, often, pixels

BUNDLE = "digits-mlp"
Numbers = NDArray[Any]

integers = st.integers(-3, 5) | st.integers(2**40 + 1, 2**70) | st.integers(-(2**70), -1)
numbers = integers | st.floats() | st.booleans()
typed = st.builds(
    lambda kind, value: kind(value),
    st.sampled_from([np.int8, np.uint64, np.int64, np.float32, np.float64, np.bool_]),
    st.integers(0, 5),
)
others = st.sampled_from([None, "1", b"1", [1], (1,), {}, 1j, object(), np.array(2), np.array([2]), np.str_("1")])
anything = numbers | typed | others


@dataclasses.dataclass(frozen=True)
class Call:
    """A call with one number that is drawn.

    Args:
        argument: Its name, as an error has to say it.
        run: Calls the method with it.
        whole: Whether it has to be an integer.
        absent: Whether `None` is to leave it out.
    """

    argument: str
    run: Callable[[Model, Any], Any]
    whole: bool = True
    absent: bool = False


def opened(threads: Any) -> Numbers:
    with load(REPOSITORY / "models" / BUNDLE, provider="cpu", threads=threads) as model:
        return model.generate(1, 0)


def warmed_up(model: Model, size: Any) -> Numbers:
    model.warm_up([size])
    return np.empty(0)


CALLS = {
    "generate n": Call("n", lambda model, n: model.generate(n, 0)),
    "generate seed": Call("seed", lambda model, seed: model.generate(2, seed)),
    "reconstruct seed": Call("seed", lambda model, seed: model.reconstruct(blank(model, 2), seed=seed), absent=True),
    "sample seed": Call("seed", lambda model, seed: model.encode(blank(model, 2)).sample(seed=seed)),
    "elbo seed": Call("seed", lambda model, seed: model.elbo(blank(model, 2), seed)),
    "elbo num_particles": Call("num_particles", lambda model, count: model.elbo(blank(model, 2), 0, count)),
    "log_likelihood num_particles": Call(
        "num_particles", lambda model, count: model.log_likelihood(blank(model, 2), 0, count)
    ),
    "score num_particles": Call("num_particles", lambda model, count: model.score(blank(model, 2), 0, count).elbo),
    "threshold rate": Call("rate", lambda model, rate: np.array(model.threshold(rate)), whole=False),
    "is_anomaly rate": Call("rate", lambda model, rate: model.is_anomaly(blank(model, 2), rate=rate), whole=False),
    "is_anomaly seed": Call("seed", lambda model, seed: model.is_anomaly(blank(model, 2), seed)),
    "posterior_predictive num_samples": Call(
        "num_samples", lambda model, count: model.posterior_predictive(blank(model, 2), count, 0)
    ),
    "posterior_predictive seed": Call("seed", lambda model, seed: model.posterior_predictive(blank(model, 2), 2, seed)),
    "interpolate steps": Call("steps", lambda model, steps: model.interpolate(blank(model, 1), blank(model, 1), steps)),
    "traverse dim": Call("dim", lambda model, dim: model.traverse(blank(model, 1), dim, [0.0, 1.0])),
    "reconstruct_batches batch_size": Call(
        "batch_size", lambda model, size: np.concatenate(list(model.reconstruct_batches(blank(model, 5), size)))
    ),
    "reconstruct_batches seed": Call(
        "seed",
        lambda model, seed: np.concatenate(list(model.reconstruct_batches(blank(model, 5), 2, seed=seed))),
        absent=True,
    ),
    "save_grid columns": Call("columns", lambda model, columns: drawn_grid(blank(model, 3), 3, columns)),
    "warm_up batch_sizes": Call("batch_sizes", warmed_up),
    "load threads": Call("threads", lambda _model, threads: opened(threads), absent=True),
    "Noise seed": Call("seed", lambda _model, seed: Noise(seed).standard_normal((20,))),
    "Noise shape": Call("shape", lambda _model, length: Noise(0).standard_normal((length, 2))),
    "Noise size": Call("size", lambda _model, size: Noise(0).uniform(size)),
}


def is_number(value: object, call: Call) -> bool:
    if value is None:
        return call.absent
    kinds = (int, np.integer) if call.whole else (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and not isinstance(value, bool)


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
@often
@given(value=anything)
@example(value=2)
@example(value=np.uint64(2))
@example(value=True)
@example(value=float("nan"))
@example(value=2**64)
def test_anything_gives_what_a_plain_number_gives_or_an_error_that_names_it(call: Call, value: Any) -> None:
    model = loaded(BUNDLE)
    try:
        found = call.run(model, value)
    except InputError as refusal:
        assert call.argument in str(refusal)  # noqa: PT017 - it need not be raised
        return
    assert is_number(value, call), f"{value!r} is no {call.argument}, and was taken for one"
    plain = value if value is None else int(value) if call.whole else float(value)
    assert found.tobytes() == call.run(model, plain).tobytes()


@often
@given(
    dtype=st.sampled_from([np.float32, np.float64, np.int32, ">f4"]),
    shape=st.sampled_from([(3, 64), (3, 65), (2, 64), (64,), (3, 1, 8, 8)]),
    order=st.sampled_from("CF"),
    read_only=st.booleans(),
    apart=st.booleans(),
)
def test_out_is_written_whole_or_refused_and_left_alone(
    dtype: Any, shape: tuple[int, ...], order: Any, read_only: bool, apart: bool
) -> None:
    model = loaded(BUNDLE)
    x = pixels(np.random.RandomState(0), model, 3)
    held = np.full((2 * shape[0], *shape[1:]), -7, dtype, order=order)
    out = held[::2] if apart else held[: shape[0]]
    out.flags.writeable = not read_only
    fits = np.dtype(dtype) == np.float32 and shape == (3, 64) and out.flags.c_contiguous and not read_only
    for run in (model.reconstruct, lambda x, out: model.decode(model.encode(x).z_loc, out=out)):
        held[...] = -7
        if fits:
            assert run(x, out=out) is out
            np.testing.assert_array_equal(out, run(x, out=None))
            assert (held[shape[0] :] == -7).all()
        else:
            with pytest.raises(InputError, match=r"^out must be float32 of shape"):
                run(x, out=out)
            assert (held == -7).all()
