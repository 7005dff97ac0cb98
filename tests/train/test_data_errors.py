"""Own data that cannot be trained on: file, row and reason."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevae.train import DataConfig, DatasetError, load_data
from edgevae.train.data import rows
from edgevae.train.data.sources import open_array, open_folder

X = np.zeros((20, 6, 5), np.float32)


def save(path: Path, content: np.ndarray, **others: np.ndarray) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{"x": content, **others})  # type: ignore[arg-type]  # arrays by name; savez has an option too
    else:
        np.save(path, content)
    return path


def images(folder: Path, count: int = 3, size: tuple[int, int] = (6, 5)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("L", size).save(folder / f"{number}.png")
    return folder


def refused(path: Path, message: str, *, labels: bool = False, **options: object) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        load_data(DataConfig(data=path, **options), labels=labels)  # type: ignore[arg-type]  # options from the parameters
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("at_once", [2**22, 31])
def test_the_first_row_that_is_no_number_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, at_once: int
) -> None:
    monkeypatch.setattr(rows, "VALUES_AT_ONCE", at_once)
    x = X.astype(np.float64)
    x[17, 3, 2] = x[19, 0, 0] = value
    refused(save(tmp_path / "x.npy", x), r"x\.npy: row 17 \(counted from 0\) holds NaN, infinity, or a number")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(20), r"must hold rows \(n, features\) or images .*, got shape \(20,\)"),
        (np.zeros(()), r"got shape \(\)"),
        (np.zeros((0, 4)), r"got shape \(0, 4\)|cannot be read"),
        (np.zeros((2, 3, 4, 5, 6)), r"got shape \(2, 3, 4, 5, 6\)"),
        (np.zeros((9, 3, 8, 3)), "both axis 1 and axis 3 could be the channels; save grey images as"),
        (np.zeros((9, 2, 8, 8)), "neither axis 1 nor axis 3 is one of the channels"),
        (np.zeros((9, 4), complex), "must hold numbers .* got dtype <c16"),
        (np.zeros((9, 4), ">f4"), "in this machine's byte order .* got dtype >f4"),
        (np.full((9, 4), "a"), "must hold numbers .* got dtype <U1"),
        (np.full((9, 4), None), "holds Python objects, .*which could run any code"),
    ],
)
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_arrays_that_hold_no_observations_are_refused(
    tmp_path: Path, array: np.ndarray, message: str, name: str
) -> None:
    refused(save(tmp_path / name, array), message)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.npy", X)
    (tmp_path / "short.npy").write_bytes(whole.read_bytes()[:-9])
    (tmp_path / "text.npy").write_text("text")
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "really.npz").write_bytes(whole.read_bytes())
    (tmp_path / "x.csv").write_text("1,2")
    np.savez(tmp_path / "other.npz", images=X)
    refused(tmp_path / "short.npy", "cannot be read: .*; save it again")
    refused(tmp_path / "text.npy", "cannot be read: it is no .npy or .npz file")
    refused(tmp_path / "text.npz", "is no .npz archive")
    refused(tmp_path / "really.npz", "is a .npy array by its content")
    refused(tmp_path / "x.csv", "is of no known kind; expected .npy, .npz, IDX")
    refused(tmp_path / "none.npy", "is not there; give a file or a folder of images")
    refused(tmp_path / "other.npz", r"must hold an array x, got images; save it with np\.savez")


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "must hold labels, an array y, got x"),
        (np.zeros(19, int), r"a label for each of 20 rows, got labels of shape \(19,\)"),
        (np.zeros((20, 1), int), r"got labels of shape \(20, 1\)"),
        (
            np.array([0.0] * 18 + [1.5, 2.5]),
            r"labels must be integers, got 1\.5 in row 18 \(counted from 0\), dtype",
        ),
        (np.array([0.0] * 19 + [np.nan]), "labels must be integers, got nan in row 19"),
        (np.zeros(20), r"labels must be integers, got 0\.0 in row 0 .* with y\.astype\(int\)"),
        (np.full(20, "cat"), "labels must be integers, got cat in row 0"),
        (np.array([0] * 13 + [-1] * 7), "labels must not be negative, got -1 in row 13"),
        (np.array([0, 2] * 10), "has no training row of class 1; classes are numbered from 0 to 2"),
        (np.array([0, 10**12] * 10), "has no training row of class 1;"),
        (np.array([1, 2] * 10), "has no training row of class 0"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, y: np.ndarray | None, message: str) -> None:
    refused(save(tmp_path / "x.npz", X, **({} if y is None else {"y": y})), message, labels=True)


def test_labels_that_are_not_beside_their_images_are_missed(tmp_path: Path) -> None:
    refused(save(tmp_path / "x.npy", X), "has no labels beside it: expected x-labels.npy; or give a .npz", labels=True)
    for name in ("train-images-idx3-ubyte", "x.idx"):
        (tmp_path / name).write_bytes(b"\0\0\x08\x03" + bytes([0, 0, 0, 4] * 3) + bytes(64))
    refused(tmp_path / "train-images-idx3-ubyte", "no labels beside it: expected train-labels-idx1-ubyte", labels=True)
    refused(tmp_path / "x.idx", "must have images-idx3 in its name", labels=True)


def test_folders_that_hold_no_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    refused(tmp_path / "pets", "pets is an empty folder")
    images(tmp_path / "pets" / "cat")
    (tmp_path / "pets" / "dog").mkdir()
    refused(tmp_path / "pets", r"dog is an empty class; put images into it")
    images(tmp_path / "pets" / "dog" / "deep")
    refused(tmp_path / "pets", r"deep is a folder within a class")
    (tmp_path / "pets" / "notes.txt").touch()
    refused(tmp_path / "pets", r"holds folders and also notes\.txt")
    (images(tmp_path / "plain") / "notes.txt").touch()
    refused(tmp_path / "plain", r"notes\.txt is no image by its name")
    refused(images(tmp_path / "flat"), "must hold a folder for each class, got images only", labels=True)


def test_an_image_of_another_size_is_named_with_the_way_out(tmp_path: Path) -> None:
    images(tmp_path / "x")
    Image.new("L", (7, 5)).save(tmp_path / "x" / "9.png")
    refused(tmp_path / "x", r"9\.png is 5 high and 7 wide, and 0\.png 5 by 6; give --resize H,W, like --resize 5,6")
    assert load_data(DataConfig(data=tmp_path / "x", resize=(5, 6)), labels=False).data_shape == (1, 5, 6)


def test_files_that_are_no_images_or_damaged_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(images(tmp_path / "x", size=(40, 40)) / "5.png")
    whole = (tmp_path / "x" / "5.png").read_bytes()
    for content in (b"text", whole[:20], whole[:700], whole[:600] + bytes(50) + whole[650:]):
        (tmp_path / "x" / "5.png").write_bytes(content)
        refused(tmp_path / "x", r"5\.png: the image cannot be read: ")


@pytest.mark.parametrize(("mode", "message"), [("RGBA", "is transp"), ("LA", "is transparent"), ("F", "has mode F")])
def test_images_whose_values_have_no_one_meaning_are_refused(tmp_path: Path, mode: str, message: str) -> None:
    Image.new(mode, (6, 5)).save(images(tmp_path / "x") / "5.tiff")
    refused(tmp_path / "x", rf"5\.tiff: the image {message}")


def test_files_of_several_images_and_deep_grey_among_colours_are_refused(tmp_path: Path) -> None:
    frames = [Image.new("L", (6, 5), grey) for grey in (0, 255)]
    frames[0].save(images(tmp_path / "x") / "5.gif", save_all=True, append_images=frames[1:])
    refused(tmp_path / "x", r"5\.gif: the file holds 2 images")
    Image.fromarray(np.zeros((5, 6), np.uint16)).save(images(tmp_path / "y") / "5.png")
    Image.new("RGB", (6, 5)).save(tmp_path / "y" / "6.png")
    refused(tmp_path / "y", r"5\.png is grey with 16 bits, and others have colours; give --grey")
    assert load_data(DataConfig(data=tmp_path / "y", grey=True), labels=False).data_shape == (1, 5, 6)


def test_what_is_done_to_data_must_go_with_their_kind(tmp_path: Path) -> None:
    refused(images(tmp_path / "x"), "scale goes with arrays", scale=(0, 16))
    refused(save(tmp_path / "x.npy", X), "resize goes with a folder of image files", resize=(4, 4))
    refused(save(tmp_path / "x.npy", X), "grey goes with a folder of image files", grey=True)


def test_test_data_of_another_kind_are_refused(tmp_path: Path) -> None:
    here = save(tmp_path / "x.npy", X)
    refused(here, r"must have observations of shape \(1, 6, 5\) as", test_data=save(tmp_path / "t.npy", X[:, :5]))
    bytes_ = save(tmp_path / "b.npy", X.astype(np.uint8))
    refused(here, "b.npy holds uint8 and .*x.npy float32: of these only uint8 would be divided", test_data=bytes_)
    pets = tmp_path / "pets"
    for name in ("cat", "dog"):
        images(pets / name, 4)
    images(tmp_path / "more" / "emu")
    refused(pets, r"must have the classes of .*pets \(cat, dog\), got emu", labels=True, test_data=tmp_path / "more")


def test_classes_of_test_data_keep_their_numbers(tmp_path: Path) -> None:
    for name in ("ape", "cat", "dog"):
        images(tmp_path / "pets" / name, 4)
    images(tmp_path / "more" / "dog", 2)
    dataset = load_data(DataConfig(data=tmp_path / "pets", test_data=tmp_path / "more"), labels=True)
    assert dataset.test_labels is not None
    assert dataset.test_labels.tolist() == [2, 2]
    assert dataset.num_classes == 3


def test_a_class_without_a_training_image_is_named(tmp_path: Path) -> None:
    images(tmp_path / "pets" / "cat", 8)
    images(tmp_path / "pets" / "dog", 1)
    config = {"test_fraction": 0.5, "split_seed": 3}
    refused(tmp_path / "pets", r"no training row of class 1 \(dog\); .* \(another split seed\)", labels=True, **config)


@pytest.mark.parametrize("labels", [[0, 1, 2**64 - 1], [0, 1, 2**63]])
def test_labels_that_are_no_class_numbers_are_named(tmp_path: Path, labels: list[int]) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 4), np.float32), y=np.array(labels, np.uint64))
    with pytest.raises(DatasetError, match=f"labels must not be above {2**63 - 1}, got {labels[2]} in row 2"):
        open_array(tmp_path / "x.npz", None, labels=True)


@pytest.mark.parametrize("name", ["x", "y"])
def test_a_part_of_an_archive_that_is_no_array_is_refused(tmp_path: Path, name: str) -> None:
    whole = save(tmp_path / "whole.npz", np.zeros((3, 4), np.float32), y=np.zeros(3, np.int64))
    with zipfile.ZipFile(whole) as there, zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for file in ("x.npy", "y.npy"):
            archive.writestr(file, b"no array" if file == f"{name}.npy" else there.read(file))
    with pytest.raises(DatasetError, match=rf"cannot be read: '{name}\.npy' is no array"):
        open_array(tmp_path / "x.npz", None, labels=True)


@pytest.mark.parametrize("header", ["{'descr': '2(f4', 'fortran_order': False, 'shape': (3,)}", "(" * 3000, "{'a': '"])
def test_a_header_that_no_reader_expects_is_refused(tmp_path: Path, header: str) -> None:
    text = header.encode().ljust(4000) + b"\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(12))
    with pytest.raises(DatasetError, match=r"cannot be read: .*; save it again"):
        open_array(tmp_path / "x.npy", None, labels=False)


def test_a_program_among_images_is_refused(tmp_path: Path) -> None:
    for name, message in (("a.png", "the image cannot be read"), ("a.eps", "is no image by its name")):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
        with pytest.raises(DatasetError, match=message):
            open_folder(folder, None, grey=False, labels=False)
