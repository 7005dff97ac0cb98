"""Manifests that fit no model, lie about the graphs, or name files that are not in the folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.runtime.hostile.case import Case, Folder, manifest
from tests.runtime.hostile.files import NO_MANIFEST

CONTRADICTS = "the manifest contradicts itself"
FOREIGN = "does not fit its manifest: it was made for"

FILE_NAMES = (
    *(
        "../outside/encoder.onnx",
        "/etc/passwd",
        "",
        ".",
        "..",
        "sub/encoder.onnx",
        "sub\\encoder.onnx",
        "C:encoder.onnx",
    ),
    *(
        "encoder.onnx\n",
        "encoder.onnx\0",
        "~",
        "~root",
        "-rf",
        ".hidden",
        "encoder onnx",
        "\u202eencoder.onnx",
        "x" * 300,
    ),
    *("file:///etc/passwd", "//host/share", "\\\\host\\share", "encoder.onnx:stream", "%2e%2e", "$HOME", "a" * 100_000),
)


def _named(number: int, name: str, *, reference: bool) -> Case:
    def change(content: Any) -> None:
        entry = content["reference"] if reference else content["graphs"]["encoder"]["file"]
        entry["file"] = name

    return manifest(f"file-name-{number}{'-reference' * reference}", change, NO_MANIFEST)


def _model(name: str, says: str, **choices: object) -> Case:
    return manifest(f"model-{name}", lambda content: content["model"].update(choices), says)


def _sized(name: str, data_dim: int) -> Case:
    """A size that manifest and signatures agree on."""

    def change(content: Any) -> None:
        content["model"]["data_shape"] = [data_dim]
        for spec in content["graphs"].values():
            for tensor in (*spec["inputs"], *spec["outputs"]):
                if tensor["shape"] == ["batch", 64]:
                    tensor["shape"] = ["batch", data_dim]

    return manifest(f"agreed-size-{name}", change, f"{NO_MANIFEST}|{CONTRADICTS}|does not fit its manifest")


def _tensor(name: str, graph: str, change: Callable[[list[Any]], object], says: str, side: str = "inputs") -> Case:
    return manifest(f"{graph}-{side}-{name}", lambda content: change(content["graphs"][graph][side]), says)


def _lies() -> Iterator[Case]:
    for graph in ("encoder", "decoder", "reconstruct", "elbo", "observation"):
        for side in ("inputs", "outputs"):
            for name, change in (
                ("none", lambda tensors: tensors.clear()),
                ("renamed", lambda tensors: tensors[0].update(name="other")),
                ("of-another-size", lambda tensors: tensors[0].update(shape=["batch", 3])),
                ("of-another-type", lambda tensors: tensors[0].update(dtype="int64")),
                ("one-more", lambda tensors: tensors.append({**tensors[0], "name": "more"})),
            ):
                # What the decoder gives beside loc_img is the model's own affair: the graph itself contradicts.
                says = f"{CONTRADICTS}|does not fit its manifest"
                yield _tensor(name, graph, change, says, side)
    shapes: tuple[Any, ...] = ([], ["batch", "batch"], [64, 64], ["rows", 64], ["batch", -1], ["batch", 0], "batch")
    huge: tuple[Any, ...] = (["batch", 2**40], ["batch", 2**20, 2**20], ["batch", 2**70], ["batch", *[1] * 1000])
    for number, shape in enumerate((*shapes, *huge)):
        yield _tensor(f"shape-{number}", "encoder", _updated("shape", shape), NO_MANIFEST)
    for number, dtype in enumerate(("float64", "float16", "object", "|O", "<f4", None)):
        yield _tensor(f"dtype-{number}", "encoder", _updated("dtype", dtype), NO_MANIFEST)


def _updated(key: str, value: object) -> Callable[[list[Any]], object]:
    return lambda tensors: tensors[0].update({key: value})


def _parameter(name: str, parameter: str) -> Case:
    """A parameter of the likelihood with the name of something else."""

    def change(content: Any) -> None:
        more = {"name": parameter, "dtype": "float32", "shape": ["batch", 64]}
        graphs = content["graphs"]
        graphs["decoder"]["outputs"].append(more)
        graphs["elbo"]["inputs"].insert(5, more)
        graphs["observation"]["inputs"].insert(1, more)

    return manifest(f"parameter-{name}", change, CONTRADICTS)


def _precision(name: str, graphs: Callable[[Folder], Any], says: str) -> Case:
    def change(folder: Folder) -> None:
        precision = {"graphs": graphs(folder), "elbo_lost_nats": 0.0, "limit_nats": 0.5}
        folder.manifest["precisions"] = {"int8": precision}

    return Case(f"int8-{name}", change, says)


MANIFESTS: tuple[Case, ...] = (
    *(_named(number, name, reference=which) for number, name in enumerate(FILE_NAMES) for which in (False, True)),
    _model("no-shape", NO_MANIFEST, data_shape=[]),
    _model("shape-of-nothing", NO_MANIFEST, data_shape=[0]),
    _model("negative-shape", NO_MANIFEST, data_shape=[-8, -8]),
    _model("huge-shape", NO_MANIFEST, data_shape=[2**62]),
    _model("huge-product", NO_MANIFEST, data_shape=[2**31, 2**31]),
    _model("beyond-64-bits", NO_MANIFEST, data_shape=[2**64, 2**64]),
    _model("a-thousand-axes", NO_MANIFEST, data_shape=[1] * 1000),
    _model("shape-of-text", NO_MANIFEST, data_shape=["8", "8"]),
    _model("shape-of-fractions", NO_MANIFEST, data_shape=[8.5, 8]),
    _model("huge-latent", NO_MANIFEST, z_dims=[2**40]),
    _model("ten-thousand-levels", NO_MANIFEST, z_dims=[1] * 10_000, latent="hierarchical"),
    _model("huge-hidden-layer", NO_MANIFEST, hidden_dim=2**50),
    _model("huge-number-of-classes", NO_MANIFEST, num_classes=2**60),
    _model("huge-number-of-components", NO_MANIFEST, num_components=2**60, latent="mixture"),
    _model("unknown-latent", NO_MANIFEST, latent="evil"),
    _model("more-fields", NO_MANIFEST, more=1),
    _model("another-shape", CONTRADICTS, data_shape=[1, 28, 28]),
    _model("another-latent", CONTRADICTS, z_dims=[6]),
    _model("labels", CONTRADICTS, num_classes=10),
    _model("mixture", CONTRADICTS, latent="mixture", num_components=3),
    _model("hierarchy", CONTRADICTS, latent="hierarchical", z_dims=[5, 2]),
    _model("another-layout", FOREIGN, data_shape=[64]),
    _model("any-range", FOREIGN, unit_interval=False),
    _model("another-likelihood", FOREIGN, likelihood="normal"),
    _model("another-architecture", FOREIGN, architecture="conv"),
    _model("another-width", FOREIGN, hidden_dim=17),
    *(_sized(f"2-to-the-{power}", 2**power) for power in (10, 24, 25, 40)),
    *_lies(),
    _parameter("x", "x"),
    _parameter("log_px_z", "log_px_z"),
    _parameter("loc_img", "loc_img"),
    _precision("of-nothing", lambda _: {}, CONTRADICTS),
    _precision("of-a-graph-that-is-not-there", lambda folder: {"prior": folder.entry("elbo.onnx")}, CONTRADICTS),
    _precision("swapped", lambda folder: {"encoder": folder.entry("decoder.onnx")}, "does not fit its manifest"),
    _precision(
        "missing", lambda folder: {"encoder": {**folder.entry("elbo.onnx"), "file": "n.onnx"}}, "cannot be read"
    ),
    manifest("no-decoder", lambda content: content["graphs"].pop("decoder"), CONTRADICTS),
    manifest("no-graphs", lambda content: content["graphs"].clear(), "has no ONNX graphs"),
    manifest("unknown-graph", lambda content: content["graphs"].update(evil=content["graphs"]["elbo"]), NO_MANIFEST),
    manifest("prior-too-many", lambda content: content["graphs"].update(prior=content["graphs"]["elbo"]), CONTRADICTS),
    manifest("another-opset", lambda content: content["graphs"]["reconstruct"].update(opset=19), "opset .*19.*got"),
    manifest("another-ir-version", lambda content: content["graphs"]["elbo"].update(ir_version=3), "IR version"),
    manifest("negative-tolerance", lambda content: content["tolerances"].update(atol=-1), NO_MANIFEST),
    manifest("negative-size", lambda content: content["reference"].update(size_bytes=-1), NO_MANIFEST),
    manifest("huge-size", lambda content: content["reference"].update(size_bytes=2**80), NO_MANIFEST),
    manifest("short-sha256", lambda content: content["reference"].update(sha256="0"), NO_MANIFEST),
    manifest("line-end-in-sha256", lambda content: content["reference"].update(sha256="0" * 64 + "\n"), NO_MANIFEST),
    manifest("no-model", lambda content: content.pop("model"), NO_MANIFEST),
    manifest("no-reference", lambda content: content.update(reference=None), NO_MANIFEST),
    manifest("unknown-field", lambda content: content.update(run="evil.py"), NO_MANIFEST),
    manifest("huge-resize", lambda content: content.update(preprocessing={"resize": [2**40, 2**40]}), NO_MANIFEST),
    manifest("empty-scale", lambda content: content.update(preprocessing={"scale": [1, 1]}), NO_MANIFEST),
)
