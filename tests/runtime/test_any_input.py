"""Whatever a caller passes gives what plain values give, or an error that names the argument."""

from __future__ import annotations

import array
import dataclasses
import functools
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn
from numpy.typing import NDArray
from PIL import Image

from edgevae import InputError, Latents, Model, Noise, load
from edgevae.images import read_image, save_grid
from tests.conftest import REPOSITORY

# The same numbers in other memory, dtypes and containers; and values that are not such arrays


Array = NDArray[Any]


class OfItsOwn(np.ndarray[Any, np.dtype[Any]]):
    """A subclass that says nothing of its own."""


class Convertible:
    """Not an array, but it can make one."""

    def __init__(self, values: Array) -> None:
        self._values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self._values if dtype is None else self._values.astype(dtype)


class Unwilling:
    """Fails when NumPy asks it for an array, in a way of its own."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        raise KeyError("no array")


def as_type(dtype: str) -> Callable[[Array], Array]:
    def converted(plain: Array) -> Array:
        if dtype[0] in "mM":
            return plain.astype(np.int64).astype(dtype)
        return plain.view(f"V{plain.itemsize}") if dtype[0] == "V" else plain.astype(dtype)

    return converted


def misaligned(plain: Array) -> Array:
    """One byte away from where a processor wants it."""
    memory = np.zeros(plain.nbytes + 1, np.uint8)[1:]
    moved = memory.view(plain.dtype).reshape(plain.shape)
    moved[...] = plain
    return moved


def field(plain: Array) -> Array:
    """A column of records, neither aligned nor contiguous."""
    records = np.zeros(plain.shape, np.dtype([("before", np.int8), ("value", plain.dtype)]))
    records["value"] = plain
    return records["value"]


def backwards(plain: Array) -> Array:
    """Strides below zero on all axes."""
    return np.ascontiguousarray(np.flip(plain))[(slice(None, None, -1),) * plain.ndim]


def read_only(plain: Array) -> Array:
    copy = plain.copy()
    copy.setflags(write=False)
    return copy


def spread(plain: Array) -> Array:
    """Each second value of a larger array."""
    return np.repeat(plain, 2, axis=-1)[..., ::2]


LAYOUTS: dict[str, Callable[[Array], Any]] = {
    "plain": lambda plain: plain,
    "fortran": np.asfortranarray,
    "backwards": backwards,
    "spread": spread,
    "misaligned": misaligned,
    "field": field,
    "read-only": read_only,
    "other byte order": lambda plain: plain.astype(plain.dtype.newbyteorder()),
    "subclass": lambda plain: plain.view(OfItsOwn),
    "convertible": Convertible,
    "memoryview": lambda plain: plain.data,
    "tensor": lambda plain: torch.from_numpy(plain.copy()),
    "tuple of rows": lambda plain: tuple(plain.copy()) if len(plain) else plain,
}
"""What keeps dtype and numbers."""

FLOATS: dict[str, Callable[[Array], Any]] = {
    "float64": lambda plain: plain.astype(np.float64),
    "longdouble": lambda plain: plain.astype(np.longdouble),
    "big-endian float64": lambda plain: plain.astype(">f8"),
    "backwards float64": lambda plain: backwards(plain.astype(np.float64)),
    "lists": lambda plain: plain.tolist() if plain.size else plain,
}
INTEGERS: dict[str, Callable[[Array], Any]] = {
    **{kind: as_type(kind) for kind in ("i1", ">i2", "<i4", ">i8", "u1", ">u2", "<u8")},
    "list": lambda plain: plain.tolist() if plain.size else plain,
    "array": lambda plain: array.array("q", plain.tolist()),
}


def not_finite(plain: Array, value: float) -> Array:
    spoilt = plain.astype(np.float64)
    spoilt.flat[-1] = value
    return spoilt


REFUSED: dict[str, Callable[[Array], Any]] = {
    **{kind: as_type(kind) for kind in ("c8", "c16", "O", "S8", "U8", "m8[s]", "M8[s]", "V8", "bool")},
    "masked": lambda plain: np.ma.masked_array(plain, mask=True),
    "masked, nothing masked": np.ma.masked_array,
    "list of masked": lambda plain: [np.ma.masked_array(row, mask=True) for row in plain],
    "records": lambda plain: plain.astype([("value", plain.dtype)]),
    "a number": lambda plain: plain.flat[0],
    "a dictionary": lambda plain: {"x": plain},
    "text": lambda _: "0.5",
    "ragged": lambda _: [[0.5], [0.5, 0.5]],
    "too deep": lambda plain: plain[(None,) * 8],
    "one more column": lambda plain: np.concatenate([plain, plain[..., :1]], -1),
    "unwilling": lambda _: Unwilling(),
    "iterator": iter,
    "NaN": lambda plain: not_finite(plain, np.nan),
    "infinity": lambda plain: not_finite(plain, -np.inf),
    "beyond float32": lambda plain: not_finite(plain, 1e300),
}
"""What no argument takes; of an array with at least one value."""


# Arrays


EXAMPLES = int(os.environ.get("EDGEVAE_EXAMPLES", "12"))
"""Examples of a call; many more take minutes, and are for a person who changed something."""
often = settings(derandomize=True, max_examples=EXAMPLES, deadline=None)

PLAIN, LABELS, LEVELS, MIXTURE, NORMAL = (
    "digits-mlp", "mnist-conditional", "mnist-hierarchical", "mnist-mixture", "fashion-normal",
)  # fmt: skip


class Call(NamedTuple):
    """A call with one argument that is drawn.

    Args:
        argument: Its name, as an error has to say it.
        bundle: Of the model.
        of: Makes its values for a number of rows.
        run: Calls the method with it and says how many rows there are.
    """

    argument: str
    bundle: str
    of: Callable[[np.random.RandomState, Model, int], Array]
    run: Callable[[Model, Any, int], Any]


@functools.cache
def loaded(bundle: str) -> Model:
    return load(REPOSITORY / "models" / bundle, provider="cpu", threads=1)


def pixels(random: np.random.RandomState, model: Model, rows: int) -> Array:
    """Observations, among them the ends of the range, the least number above 0, and the 0 with a sign."""
    x = random.random_sample((rows, int(np.prod(model.data_shape)))).astype(np.float32)
    x.flat[:4] = np.array([0, 1, 1e-45, -0.0], np.float32)[: x.size]
    return x


def latents(random: np.random.RandomState, model: Model, rows: int) -> Array:
    return random.standard_normal((rows, model.z_dim)).astype(np.float32)


def particles(random: np.random.RandomState, model: Model, rows: int) -> Array:
    return latents(random, model, 2 * rows).reshape(2, rows, model.z_dim)


def classes(random: np.random.RandomState, model: Model, rows: int) -> Array:
    return random.randint(0, 10, rows)


def blank(model: Model, rows: int) -> Array:
    return np.full((rows, *model.data_shape), 0.5, np.float32)


def some_pixels(random: np.random.RandomState, model: Model, rows: int) -> Array:
    return pixels(random, model, rows + 2)


def both_of_encode(model: Model, x: Any, _rows: int) -> tuple[Array, ...]:
    posterior = model.encode(x)
    return posterior.z_loc, posterior.z_scale


def both_of_score(model: Model, x: Any, _rows: int) -> tuple[Array, ...]:
    score = model.score(x)
    return score.elbo, score.kl


def drawn_grid(values: Any, rows: int, columns: Any = 3) -> Array:
    """The pixels of the picture that is made of images; nothing for no images, of which there is none."""
    if rows == 0:
        return np.empty(0)
    with tempfile.TemporaryDirectory() as folder:
        save_grid(Path(folder) / "grid.png", values, (1, 8, 8), columns)
        with Image.open(Path(folder) / "grid.png") as image:
            return np.array(image)


def streamed(model: Model, x: Any, y: Any = None) -> Array:
    return np.concatenate(
        [blank(model, 0).reshape(0, model.data_shape[-1] ** 2), *model.reconstruct_batches(x, 2, y=y)]
    )


CALLS = {
    "encode": Call("x", PLAIN, pixels, both_of_encode),
    "encode any range": Call("x", NORMAL, pixels, lambda model, x, _: model.encode(x).z_loc),
    "encode labels": Call("y", LABELS, classes, lambda model, y, n: model.encode(blank(model, n), y=y).z_loc),
    "encode levels": Call("x", LEVELS, pixels, lambda model, x, _: model.encode(x, seed=3).upper[0].z_loc),
    "encode level noise": Call(
        "eps", LEVELS, latents, lambda model, eps, n: model.encode(blank(model, n), eps=[eps]).upper[0].z_loc
    ),
    "reconstruct": Call("x", PLAIN, pixels, lambda model, x, _: model.reconstruct(x, seed=1)),
    "reconstruct noise": Call("eps", PLAIN, latents, lambda model, eps, n: model.reconstruct(blank(model, n), eps=eps)),
    "sample noise": Call("eps", PLAIN, latents, lambda model, eps, n: model.encode(blank(model, n)).sample(eps=eps)),
    "decode": Call("z", PLAIN, latents, lambda model, z, _: model.decode(z)),
    "decode labels": Call("y", LABELS, classes, lambda model, y, n: model.decode(np.zeros((n, model.z_dim)), y=y)),
    "generate labels": Call("y", LABELS, classes, lambda model, y, n: model.generate(n, 1, y=y)),
    "generate component": Call("component", MIXTURE, classes, lambda model, c, n: model.generate(n, 1, component=c)),
    "elbo": Call("x", PLAIN, pixels, lambda model, x, _: model.elbo(x, 1, 2)),
    "elbo noise": Call("eps", PLAIN, particles, lambda model, eps, n: model.elbo(blank(model, n), None, 2, eps=eps)),
    "log_likelihood": Call("x", PLAIN, pixels, lambda model, x, _: model.log_likelihood(x, 1, 2)),
    "score": Call("x", PLAIN, pixels, both_of_score),
    "is_anomaly": Call("x", PLAIN, pixels, lambda model, x, _: model.is_anomaly(x)),
    "posterior_predictive": Call("x", PLAIN, pixels, lambda model, x, _: model.posterior_predictive(x, 2, 1)),
    "interpolate from": Call("x", PLAIN, pixels, lambda model, x, n: model.interpolate(x, blank(model, n), 3)),
    "interpolate to": Call("x", PLAIN, pixels, lambda model, x, n: model.interpolate(blank(model, n), x, 3)),
    "traverse": Call("x", PLAIN, pixels, lambda model, x, _: model.traverse(x, 1, [-1.0, 1.0])),
    "traverse span": Call(
        "span",
        PLAIN,
        lambda random, _, n: random.standard_normal(n).astype(np.float32),
        lambda model, span, _: model.traverse(blank(model, 2), 0, span),
    ),
    "active_units": Call("x", PLAIN, some_pixels, lambda model, x, _: model.active_units(x)),
    "save_grid": Call("values", PLAIN, pixels, lambda _, x, n: drawn_grid(x, n)),
    "observations": Call("x", PLAIN, pixels, lambda model, x, _: model.observations(x)[0].copy()),
    "reconstruct_batches": Call("x", PLAIN, pixels, lambda model, x, _: streamed(model, [x, x])),
    "reconstruct_batches labels": Call(
        "y", LABELS, classes, lambda model, y, n: streamed(model, blank(model, 2 * n), [y, y])
    ),
}
TAKEN = {
    **{(bundle, "x"): ["bool"] for bundle in (PLAIN, LEVELS, NORMAL)},  # 0 and 1
    (LABELS, "y"): ["a number"],  # for all rows
    (MIXTURE, "component"): ["a number"],
    (PLAIN, "span"): ["one more column"],
}
"""What others do not take."""
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))


def results(call: Call, value: Any, rows: int) -> list[Array]:
    found = call.run(loaded(call.bundle), value, rows)
    return list(found) if isinstance(found, tuple) else [found]


@every_call
@often
@given(data=st.data(), rows=st.integers(0, 4), seed=st.integers(0, 2**32 - 1))
def test_the_same_values_give_the_same_bits_however_they_come(
    call: Call, data: st.DataObject, rows: int, seed: int
) -> None:
    plain = call.of(np.random.RandomState(seed), loaded(call.bundle), rows)
    dresses = {**LAYOUTS, **(FLOATS if plain.dtype.kind == "f" else INTEGERS)}
    value = dresses[data.draw(st.sampled_from(sorted(dresses)))](plain.copy())
    expected, found = results(call, plain, rows), results(call, value, rows)
    for each, wanted in zip(found, expected, strict=True):
        assert each.dtype == wanted.dtype
        assert each.shape == wanted.shape
        assert each.tobytes() == wanted.tobytes()
        assert each.flags.c_contiguous
        assert each.flags.writeable
        assert not (isinstance(value, np.ndarray) and np.shares_memory(each, value))
    if isinstance(value, np.ndarray):
        np.testing.assert_array_equal(value, plain)


@every_call
@often
@given(refused=st.sampled_from(sorted(REFUSED)), rows=st.integers(2, 4), seed=st.integers(0, 2**32 - 1))
def test_invalid_arrays_are_refused_by_argument_name(call: Call, refused: str, rows: int, seed: int) -> None:
    assume(refused not in TAKEN.get((call.bundle, call.argument), ()))
    plain = call.of(np.random.RandomState(seed), loaded(call.bundle), rows)
    with pytest.raises(InputError, match=rf"^({call.argument}|x and y) must"):
        results(call, REFUSED[refused](plain), rows)


shapes = st.one_of(
    st.sampled_from([(2,), (2, 64), (2, 50), (2, 784), (2, 8, 8)]),
    drawn.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)
dtypes = st.one_of(drawn.scalar_dtypes(), drawn.array_dtypes(max_size=2))


@every_call
@often
@given(value=drawn.arrays(dtypes, shapes))
def test_any_array_gives_the_numbers_of_a_plain_one_or_an_error_that_names_it(call: Call, value: Array) -> None:
    before = value.tobytes()
    named = (f"{call.argument} must", "x_a and x_b must", "x and y must")
    try:
        found = results(call, value, 2)
    except InputError as refusal:
        assert str(refusal).startswith(named)  # noqa: PT017 - it need not be raised
        return
    plain: Array
    if call.argument in {"y", "component"}:
        plain = value.astype(np.int64)
    else:
        plain = value.astype(np.float32) / np.float32(255 if call.argument == "x" and value.dtype == np.uint8 else 1)
    for each, wanted in zip(found, results(call, plain, 2), strict=True):
        assert each.tobytes() == wanted.tobytes()
    assert value.tobytes() == before


numbers_or_text = st.one_of(
    drawn.boolean_dtypes(),
    drawn.integer_dtypes(),
    drawn.unsigned_integer_dtypes(),
    drawn.floating_dtypes(),
    drawn.unicode_string_dtypes(),
)


@often
@given(
    value=drawn.arrays(numbers_or_text, shapes),
    space=st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)
def test_latents_of_any_kind_come_back_from_a_file_as_they_were(value: Array, space: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Latents.of(value, space).save(Path(folder) / "z.npz")
        found = Latents.load(Path(folder) / "z.npz")
    assert found.latent_space_id == space
    assert (found.dtype, found.shape, found.tobytes()) == (value.dtype, value.shape, value.tobytes())


@settings(often, max_examples=10 * EXAMPLES)
@given(data_shape=st.lists(st.integers(-1, 9), max_size=4).map(tuple), resize=st.booleans(), colour=st.booleans())
def test_an_image_for_any_shape_is_read_to_that_shape_or_refused(
    data_shape: tuple[int, ...], resize: bool, colour: bool
) -> None:
    file = io.BytesIO()
    Image.new("RGB" if colour else "L", (8, 8), "white").save(file, "PNG")
    try:
        found = read_image(file, data_shape, resize=resize)
    except InputError:
        assert data_shape not in {(8, 8), (1, 8, 8), (3, 8, 8)}
        return
    assert found.shape == data_shape
    assert set(np.unique(found)) == {255}


# Numbers


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
class NumberCall:
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


NUMBER_CALLS = {
    "generate n": NumberCall("n", lambda model, n: model.generate(n, 0)),
    "generate seed": NumberCall("seed", lambda model, seed: model.generate(2, seed)),
    "reconstruct seed": NumberCall(
        "seed", lambda model, seed: model.reconstruct(blank(model, 2), seed=seed), absent=True
    ),
    "sample seed": NumberCall("seed", lambda model, seed: model.encode(blank(model, 2)).sample(seed=seed)),
    "elbo seed": NumberCall("seed", lambda model, seed: model.elbo(blank(model, 2), seed)),
    "elbo num_particles": NumberCall("num_particles", lambda model, count: model.elbo(blank(model, 2), 0, count)),
    "log_likelihood num_particles": NumberCall(
        "num_particles", lambda model, count: model.log_likelihood(blank(model, 2), 0, count)
    ),
    "score num_particles": NumberCall(
        "num_particles", lambda model, count: model.score(blank(model, 2), 0, count).elbo
    ),
    "threshold rate": NumberCall("rate", lambda model, rate: np.array(model.threshold(rate)), whole=False),
    "is_anomaly rate": NumberCall(
        "rate", lambda model, rate: model.is_anomaly(blank(model, 2), rate=rate), whole=False
    ),
    "is_anomaly seed": NumberCall("seed", lambda model, seed: model.is_anomaly(blank(model, 2), seed)),
    "posterior_predictive num_samples": NumberCall(
        "num_samples", lambda model, count: model.posterior_predictive(blank(model, 2), count, 0)
    ),
    "posterior_predictive seed": NumberCall(
        "seed", lambda model, seed: model.posterior_predictive(blank(model, 2), 2, seed)
    ),
    "interpolate steps": NumberCall(
        "steps", lambda model, steps: model.interpolate(blank(model, 1), blank(model, 1), steps)
    ),
    "traverse dim": NumberCall("dim", lambda model, dim: model.traverse(blank(model, 1), dim, [0.0, 1.0])),
    "reconstruct_batches batch_size": NumberCall(
        "batch_size", lambda model, size: np.concatenate(list(model.reconstruct_batches(blank(model, 5), size)))
    ),
    "reconstruct_batches seed": NumberCall(
        "seed",
        lambda model, seed: np.concatenate(list(model.reconstruct_batches(blank(model, 5), 2, seed=seed))),
        absent=True,
    ),
    "save_grid columns": NumberCall("columns", lambda model, columns: drawn_grid(blank(model, 3), 3, columns)),
    "warm_up batch_sizes": NumberCall("batch_sizes", warmed_up),
    "load threads": NumberCall("threads", lambda _model, threads: opened(threads), absent=True),
    "Noise seed": NumberCall("seed", lambda _model, seed: Noise(seed).standard_normal((20,))),
    "Noise shape": NumberCall("shape", lambda _model, length: Noise(0).standard_normal((length, 2))),
    "Noise size": NumberCall("size", lambda _model, size: Noise(0).uniform(size)),
}


def is_number(value: object, call: NumberCall) -> bool:
    if value is None:
        return call.absent
    kinds = (int, np.integer) if call.whole else (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and not isinstance(value, bool)


@pytest.mark.parametrize("call", NUMBER_CALLS.values(), ids=list(NUMBER_CALLS))
@often
@given(value=anything)
@example(value=2)
@example(value=np.uint64(2))
@example(value=True)
@example(value=float("nan"))
@example(value=2**64)
def test_anything_gives_what_a_plain_number_gives_or_an_error_that_names_it(call: NumberCall, value: Any) -> None:
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
