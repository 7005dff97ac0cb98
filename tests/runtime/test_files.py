"""What the command line reads: rows of files, with their labels."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from PIL import Image

from edgevae import InputError, Latents, Model, load
from edgevae.cli.inputs import Rows, open_latents, open_observations
from edgevae.cli.outputs import rows_file

REPOSITORY = Path(__file__).parents[2]
DIGITS = REPOSITORY / "models" / "digits-mlp"
CONDITIONAL = REPOSITORY / "models" / "mnist-conditional"


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def opened(model: Model, *paths: Path, y: int | None = None, labels: Path | None = None) -> Rows:
    return open_observations(paths, model.manifest, y, labels)


def all_of(rows: Rows) -> NDArray[np.float32]:
    return np.concatenate([x for x, _ in rows.batches(7)])


@pytest.fixture(scope="module")
def digits_model() -> Model:
    return load(DIGITS, provider="cpu")


@pytest.fixture(scope="module")
def conditional() -> Model:
    return load(CONDITIONAL, provider="cpu")


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize("name", ["x-images-idx3-ubyte", "x.idx", "X.IDX3-UBYTE", "x-ubyte.gz", "x.idx.gz", "x.npy"])
def test_every_format_gives_the_same_rows(
    digits_model: Model, pixels: NDArray[np.uint8], tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    if name.endswith(".npy"):
        np.save(path, pixels)
    else:
        path.write_bytes(gzip.compress(idx(pixels)) if name.endswith(".gz") else idx(pixels))
    rows = opened(digits_model, path)
    assert rows.count == 20
    np.testing.assert_array_equal(all_of(rows), digits_model.observations(pixels)[0])


def test_arrays_that_are_not_in_c_order_are_read_as_they_are(
    digits_model: Model, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.asfortranarray(pixels))
    np.testing.assert_array_equal(
        all_of(opened(digits_model, tmp_path / "x.npy")), digits_model.observations(pixels)[0]
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P5 8 8 255", "is not an IDX file: expected two zero bytes at its start, got b'P5'"),
        (b"\0\0", "is not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x02" + bytes(8), "holds values of IDX type 13; expected 8, unsigned bytes"),
        (b"\0\0\x08\x00", "has 0 axes"),
        (b"\0\0\x08\xff", "has 255 axes"),
        (b"\0\0\x08\x03\0\0\0\x02", "ends inside its header"),
        (idx(np.zeros((2, 8, 8), np.uint8))[:-1], r"should hold 128 values for shape \(2, 8, 8\), got 127"),
        (idx(np.zeros((2, 8, 8), np.uint8)) + b"\0", r"should hold 128 values .*, got (129|more than 128)"),
        (b"\0\0\x08\x02" + b"\x7f" * 8, "should hold|unpacks to"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "says that its shape is .*, which no array can have"),
        (b"\0\0\x08\x04" + b"\0" * 4 + b"\xff" * 12, r"says that its shape is \(0, .*, which no array can have"),
    ],
)
@pytest.mark.parametrize("name", ["x-ubyte", "x-ubyte.gz"])
def test_damaged_idx_files_are_refused(
    digits_model: Model, tmp_path: Path, content: bytes, message: str, name: str
) -> None:
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(InputError, match=f"{name}: .*(?:{message})"):
        opened(digits_model, tmp_path / name)


def test_damaged_gzip_files_are_refused(digits_model: Model, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    packed = gzip.compress(idx(pixels))
    for content in (packed[:-20], b"text", packed[:40] + bytes(20) + packed[60:]):
        (tmp_path / "x-ubyte.gz").write_bytes(content)
        with pytest.raises(InputError, match=r"x-ubyte.gz: (cannot be unpacked|is not|should hold)"):
            opened(digits_model, tmp_path / "x-ubyte.gz")


def test_a_folder_gives_its_images_in_the_order_of_their_names(
    digits_model: Model, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    for name, image in zip(("b.png", "c.PNG", "a.png"), pixels, strict=False):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / ".hidden").write_text("not looked at")
    deep = (pixels[3].astype(np.uint16) << 8) | 17
    Image.fromarray(deep).save(tmp_path / "d.png")  # 16 bits beside 8
    expected = [*(pixels[[2, 0, 1]] / np.float32(255)), deep / np.float32(65535)]
    np.testing.assert_allclose(all_of(opened(digits_model, tmp_path)), np.reshape(expected, (4, 64)), rtol=1e-6)


def test_a_folder_with_other_files_than_images_is_refused(
    digits_model: Model, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="is an empty folder"):
        opened(digits_model, tmp_path)
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    for name in ("notes.txt", "x.npy", "page.pdf"):
        (tmp_path / name).touch()
        with pytest.raises(InputError, match=f"holds {name}, which is not an image"):
            opened(digits_model, tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "z.png").write_text("text")
    with pytest.raises(InputError, match=r"z\.png: .* cannot be read as an image"):
        all_of(opened(digits_model, tmp_path))
    (tmp_path / "more").mkdir()
    with pytest.raises(InputError, match="holds a folder, more"):
        opened(digits_model, tmp_path)


@pytest.mark.parametrize("size", [1, 3, 20, 100])
def test_batches_join_files_of_any_kind(
    digits_model: Model, pixels: NDArray[np.uint8], tmp_path: Path, size: int
) -> None:
    floats = pixels[:5].reshape(5, 64) / np.float64(255)
    np.save(tmp_path / "a.npy", pixels[:6])
    np.savez(tmp_path / "b.npz", x=floats)
    Image.fromarray(pixels[7]).save(tmp_path / "c.png")
    rows = opened(digits_model, tmp_path / "a.npy", tmp_path / "b.npz", tmp_path / "c.png", tmp_path / "a.npy")
    batches = [x for x, _ in rows.batches(size)]
    assert [len(x) for x in batches] == [size] * (18 // size) + [18 % size] * (18 % size > 0)
    expected = digits_model.observations(pixels[[*range(6), *range(5), 7, *range(6)]])[0]
    np.testing.assert_allclose(np.concatenate(batches), expected, atol=1e-7)


def test_files_that_do_not_fit_are_refused_before_any_row_is_read(
    digits_model: Model, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    np.save(tmp_path / "good.npy", pixels)
    for name, array, message in (
        ("wide.npy", np.zeros((3, 7)), r"wide.npy: x must have shape .*, got \(3, 7\)"),
        ("long.npy", np.zeros((3, 8, 8), np.int64), "long.npy: x must be floats in .*, got dtype int64"),
        ("flat.npy", np.zeros(64, np.uint8), r"flat.npy: x must have shape .*, got \(64,\); add a batch axis"),
        ("one.npy", np.zeros((), np.uint8), "one.npy: must hold rows, got a single value"),
        ("none.npy", np.zeros((0, 64), np.uint8), "none.npy: expected at least one row, got none"),
    ):
        np.save(tmp_path / name, array)
        paths = [tmp_path / name] if name == "none.npy" else [tmp_path / "good.npy", tmp_path / name]
        with pytest.raises(InputError, match=message):
            opened(digits_model, *paths)


def test_a_value_that_does_not_fit_is_found_in_its_file(digits_model: Model, tmp_path: Path) -> None:
    x = np.zeros((30, 64), np.float32)
    x[25, 3] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(InputError, match=r"x\.npy, from row 20 on: x must not hold NaN, got NaN in row 5"):
        list(opened(digits_model, tmp_path / "x.npy").batches(10))


def test_labels_come_from_the_file_or_from_one_of_their_own(conditional: Model, tmp_path: Path) -> None:
    x, y = np.zeros((6, 784), np.uint8), np.array([3, 1, 4, 1, 5, 9], np.uint8)
    np.savez(tmp_path / "xy.npz", x=x, y=y)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    (tmp_path / "y-ubyte.gz").write_bytes(gzip.compress(idx(y)))
    for rows in (
        opened(conditional, tmp_path / "xy.npz"),
        opened(conditional, tmp_path / "x.npy", labels=tmp_path / "y.npy"),
        opened(conditional, tmp_path / "x.npy", labels=tmp_path / "y-ubyte.gz"),
    ):
        found = [labels.tolist() for _, labels in rows.batches(4) if labels is not None]
        assert found == [[3, 1, 4, 1], [5, 9]]
    over = opened(conditional, tmp_path / "xy.npz", tmp_path / "x.npy", y=7)
    assert over.y is not None
    assert over.y.tolist() == [7] * 12


def test_labels_that_do_not_fit_are_refused(conditional: Model, digits_model: Model, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((6, 784), np.uint8))
    np.save(tmp_path / "y.npy", np.zeros(5, np.int64))
    np.savez(tmp_path / "xy.npz", x=np.zeros((6, 784), np.uint8), y=np.full(6, 10))
    np.save(tmp_path / "digits.npy", np.zeros((6, 64), np.uint8))
    with pytest.raises(InputError, match=r"x.npy: y is needed: .*; give --y, --labels, or a .npz file with an array y"):
        opened(conditional, tmp_path / "x.npy")
    with pytest.raises(InputError, match=r"y.npy: y must be one integer or have shape \(6,\), got \(5,\)"):
        opened(conditional, tmp_path / "x.npy", labels=tmp_path / "y.npy")
    with pytest.raises(InputError, match="--y and --labels were both given"):
        opened(conditional, tmp_path / "x.npy", y=1, labels=tmp_path / "y.npy")
    with pytest.raises(InputError, match=r"xy\.npz: y must be from 0 to 9, got 10 to 10"):
        opened(conditional, tmp_path / "xy.npz")
    with pytest.raises(InputError, match=r"xy\.npz: labels are read from .npy, or from IDX"):
        opened(conditional, tmp_path / "x.npy", labels=tmp_path / "xy.npz")
    with pytest.raises(InputError, match="y must not be given: this model sees no labels"):
        opened(digits_model, tmp_path / "digits.npy", y=1)


def test_latents_know_the_space_that_their_file_names(digits_model: Model, tmp_path: Path) -> None:
    z = np.random.default_rng(0).standard_normal((5, 50))
    np.savez(tmp_path / "z.npz", z_loc=z, latent_space_id=np.array("a" * 64))
    for size in (2, 5, 100):
        for rows, _ in open_latents(tmp_path / "z.npz", digits_model.manifest.model, None, None).batches(size):
            assert isinstance(rows, Latents)
            assert rows.latent_space_id == "a" * 64
    np.save(tmp_path / "z.npy", z)
    rows, _ = open_latents(tmp_path / "z.npy", digits_model.manifest.model, None, None).first(5)
    np.testing.assert_array_equal(rows, z.astype(np.float32))
    assert not isinstance(rows, Latents)
    np.savez(tmp_path / "both.npz", z=z + 1, z_loc=z)
    rows, _ = open_latents(tmp_path / "both.npz", digits_model.manifest.model, None, None).first(5)
    np.testing.assert_array_equal(rows, (z + 1).astype(np.float32))


@pytest.mark.parametrize("out", ["loc_img.npy", "loc_img.npz"])
def test_memory_stays_flat_from_file_to_file(digits_model: Model, tmp_path: Path, out: str) -> None:
    count = 100_000
    source = open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(count, 64))
    source[:] = np.arange(64, dtype=np.uint8)
    tracemalloc.start()
    rows = opened(digits_model, tmp_path / "x.npy")
    with rows_file(tmp_path / out, count) as append:
        for x, _ in rows.batches(1000):
            append(loc_img=digits_model.reconstruct(x))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6e6  # the rows written are 26 MB
    written = np.load(tmp_path / out)
    written = written if isinstance(written, np.ndarray) else written["loc_img"]
    assert written.shape == (count, 64)
    np.testing.assert_allclose(written[[0, -1]], digits_model.reconstruct(source[:2]), atol=1e-6)
