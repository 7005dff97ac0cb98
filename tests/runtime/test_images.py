"""Pictures in and out."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgevae import InputError
from edgevae.images import is_image_name, read_image, read_image_header, save_grid
from edgevae.train import DatasetError
from edgevae.train.data.sources import open_folder


def test_a_grid_holds_every_image_enlarged_with_gaps_between(tmp_path: Path) -> None:
    values = np.zeros((3, 64), np.float32)
    values[0], values[1], values[2] = 0.0, 0.5, 1.0
    save_grid(tmp_path / "grid.png", values, (1, 8, 8), columns=2)
    with Image.open(tmp_path / "grid.png") as image:
        pixels = np.asarray(image)
    factor = 7  # 8 pixels become 56
    side, gap = 8 * factor, factor
    assert pixels.shape == (2 * (side + gap) + gap, 2 * (side + gap) + gap)
    centres = {(row, column): pixels[gap + side // 2 + row * (side + gap), gap + side // 2 + column * (side + gap)]
               for row in (0, 1) for column in (0, 1)}  # fmt: skip
    assert centres == {(0, 0): 0, (0, 1): 128, (1, 0): 255, (1, 1): 96}


def test_large_images_are_not_enlarged(tmp_path: Path) -> None:
    save_grid(tmp_path / "grid.png", np.zeros((1, 64 * 64), np.float32), (1, 64, 64))
    with Image.open(tmp_path / "grid.png") as image:
        assert image.size == (66, 66)


def test_an_image_file_is_read_as_one_observation(tmp_path: Path) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    np.testing.assert_array_equal(read_image(tmp_path / "digit.png", (1, 8, 8)), pixels[None])


def test_an_image_of_another_size_is_refused_not_resized(tmp_path: Path) -> None:
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    with pytest.raises(InputError, match="must be 8 wide and 8 high, got 9 by 8; resize it"):
        read_image(tmp_path / "wide.png", (1, 8, 8))


def test_a_file_that_is_not_an_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_image(tmp_path / "text.png", (1, 8, 8))


def test_an_image_in_memory_is_read_as_one_in_a_file(tmp_path: Path) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    np.testing.assert_array_equal(read_image(io.BytesIO(file.getvalue()), (1, 8, 8)), pixels[None])
    with pytest.raises(InputError, match=r"^the image cannot be read: it is damaged, or none of BMP, DIB"):
        read_image(io.BytesIO(b"text"), (1, 8, 8))


def test_a_damaged_image_is_an_input_error() -> None:
    file = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(file, "PNG")
    whole, random = file.getvalue(), np.random.RandomState(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[random.randint(8, len(whole))] = random.randint(256)
        try:
            assert read_image(io.BytesIO(damaged), (1, 8, 8)).shape == (1, 8, 8)
        except InputError:
            refused += 1
    assert refused > 100


def test_a_file_of_several_images_is_refused(tmp_path: Path) -> None:
    first, second = (Image.new("L", (8, 8), grey) for grey in (0, 255))
    first.save(tmp_path / "two.gif", save_all=True, append_images=[second])
    with pytest.raises(InputError, match="the file holds 2 images, expected one"):
        read_image(tmp_path / "two.gif", (1, 8, 8))


def test_images_are_known_by_their_names() -> None:
    assert [is_image_name(name) for name in ("a.png", "a.JPG", "a.jpeg", "a.webp")] == [True] * 4
    assert [is_image_name(name) for name in ("a.npy", "a", "png", "a.pdf", "a.txt")] == [False] * 5


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_every_grey_image_is_read_as_its_values(tmp_path: Path, mode: str) -> None:
    pixels = np.where(np.eye(8) > 0, 255, 0).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "digit.png")
    np.testing.assert_array_equal(read_image(tmp_path / "digit.png", (1, 8, 8)), pixels[None])


def test_sixteen_bits_keep_their_depth(tmp_path: Path) -> None:
    pixels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    found = read_image(tmp_path / "digit.png", (1, 8, 8))
    np.testing.assert_allclose(found[0], pixels / 65535, atol=1e-6)


def test_colours_are_kept_for_a_model_of_colours(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png", (3, 8, 6)), pixels.transpose(2, 0, 1))
    save_grid(tmp_path / "grid.png", pixels.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255), (3, 8, 6))
    with Image.open(tmp_path / "grid.png") as image:
        np.testing.assert_array_equal(np.asarray(image)[7:-7:7, 7:-7:7], pixels)


@pytest.mark.parametrize(("mode", "message"), [("LA", "transparent"), ("RGBA", "transparent"), ("F", "has mode F")])
def test_images_with_ambiguous_values_are_refused(tmp_path: Path, mode: str, message: str) -> None:
    Image.new("L", (8, 8)).convert(mode).save(tmp_path / "image.tiff")
    with pytest.raises(InputError, match=message):
        read_image(tmp_path / "image.tiff", (1, 8, 8))


def test_a_grid_of_nothing_or_of_five_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one image"):
        save_grid(tmp_path / "grid.png", np.zeros((0, 64), np.float32), (1, 8, 8))
    with pytest.raises(InputError, match="1 or 3 channels"):
        save_grid(tmp_path / "grid.png", np.zeros((1, 320), np.float32), (5, 8, 8))
    with pytest.raises(InputError, match=r"saved as \.png"):
        save_grid(tmp_path / "grid.gif", np.zeros((1, 64), np.float32), (1, 8, 8))


def test_a_program_with_the_name_of_an_image_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    program = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n({marker}) (w) file closefile\n%%EOF\n"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {marker}\n")
    ghostscript.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path), prepend=":")
        patch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # what it found before
        for name in ("image.png", "image.eps"):
            (tmp_path / name).write_text(program)
            with pytest.raises(InputError, match="cannot be read as an image"):
                read_image(tmp_path / name, (1, 8, 8))
    assert not marker.exists()
    assert not is_image_name("image.eps")


def test_a_file_that_unpacks_to_a_huge_image_is_refused_before_it_does(tmp_path: Path) -> None:
    Image.new("1", (8000, 8000)).save(tmp_path / "huge.png")
    with pytest.raises(InputError, match="must have at most 50,000,000 pixels, got 8000 by 8000"):
        read_image(tmp_path / "huge.png", (1, 8, 8), resize=True)
    with pytest.raises(DatasetError, match="must have at most 50,000,000 pixels, got 8000 by 8000"):
        open_folder(tmp_path, (8, 8), grey=True, labels=False)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.full((1, 64), np.nan, np.float32), {}, "values must be finite"),
        (np.zeros((1, 63), np.float32), {}, r"values must have shape \(count, 64\)"),
        (np.zeros((1, 64), np.float32), {"columns": 0}, "columns must be at least 1"),
        (np.ma.masked_array(np.zeros((1, 64), np.float32), mask=True), {}, "values must not be a masked array"),
    ],
)
def test_an_invalid_grid_is_refused(tmp_path: Path, values: Any, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        save_grid(tmp_path / "grid.png", values, (1, 8, 8), **options)
    assert not (tmp_path / "grid.png").exists()


def test_a_jpeg_with_too_many_progressive_scans_is_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("L", (4, 4), 7).save(content, "JPEG", progressive=True)
    good = content.getvalue()
    again = good[good.rindex(b"\xff\xda") : -2]
    (tmp_path / "x.jpg").write_bytes(good[:-2] + again * 200 + good[-2:])
    with pytest.raises(InputError, match=r"the image has 2\d\d scans, expected at most 100; save it again"):
        read_image(tmp_path / "x.jpg", (1, 4, 4))
    np.testing.assert_array_equal(read_image(io.BytesIO(good), (1, 4, 4)), np.full((1, 4, 4), 7, np.uint8))


TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: np.rot90(pixels, 2),
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: np.swapaxes(pixels, 0, 1),
    6: np.rot90,
    7: lambda pixels: np.swapaxes(np.rot90(pixels, 2), 0, 1),
    8: lambda pixels: np.rot90(pixels, -1),
}
"""How an upright picture is stored with each EXIF orientation."""


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(
    ("suffix", "kind"),
    [*((suffix, kind) for suffix in (".png", ".tiff") for kind in ("colour", "grey", "16 bit")), (".webp", "colour")],
)
def test_an_image_is_turned_as_its_exif_orientation_says(
    tmp_path: Path, orientation: int, suffix: str, kind: str
) -> None:
    size = (6, 5)
    channels, top = (3,) if kind == "colour" else (), 65536 if kind == "16 bit" else 256
    pixels = np.random.default_rng(0).integers(0, top, (*size, *channels), np.uint16 if top > 256 else np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"x{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(np.ascontiguousarray(TURNS[orientation](pixels))).save(file, exif=exif, **options)
    shape = (3 if kind == "colour" else 1, *size)
    found = read_image(file, shape)
    expected = pixels.reshape(*size, shape[0]).transpose(2, 0, 1)
    np.testing.assert_array_equal(found, expected if top == 256 else expected / np.float32(65535))
    header = read_image_header(file)
    assert (header.height, header.width, header.is_grey, header.is_16_bit) == (*size, kind != "colour", top > 256)
    rows = open_folder(tmp_path, None, grey=False, labels=False).rows
    assert tuple(rows.shape) == (1, *shape)
    np.testing.assert_array_equal(rows.stored.numpy()[0], found)
    rows = open_folder(tmp_path, (5, 4), grey=False, labels=False).rows
    np.testing.assert_array_equal(rows.stored.numpy()[0], read_image(file, (shape[0], 5, 4), resize=True))


def test_no_message_shows_an_objects_address(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"text")
    for file, says in (
        (io.BytesIO(b"text"), "the image cannot be read: "),
        (tmp_path / "x.png", str(tmp_path / "x.png")),
    ):
        for reader in (lambda file: read_image(file, (1, 8, 8)), read_image_header):
            with pytest.raises(InputError, match=f"^{says}") as caught:
                reader(file)
            assert " at 0x" not in str(caught.value)
