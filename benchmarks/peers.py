"""The ways to run the same model on the same machine, each with its best settings."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

import edgevae
from benchmarks import beside
from edgevae import Precision, ReducedPrecision
from edgevae.export import Source, export_bundle
from edgevae.train import VAE, ModelConfig

FloatArray: TypeAlias = NDArray[np.float32]
Way: TypeAlias = Callable[[FloatArray, FloatArray], FloatArray]
"""x, eps → loc_img: encode, take z = z_loc + z_scale · eps, decode."""

OURS, STOCK, EAGER, SESSION, BESIDE = "edgevae", "stock export", "torch eager", "session.run", "other checkout"
PEERS = (OURS, EAGER, "torch.compile", "max-autotune", "TorchScript", STOCK, SESSION, "OpenVINO", "numpy")
DATA_SHAPE = (1, 28, 28)
_OPSET = 20
_NO_LIMIT_NATS = 1e6  # for an untrained model the loss has no meaning


class Reconstruct(nn.Module):
    """Encoder, reparameterization and decoder, as PyTorch's users write it."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.encoder, self.decoder = vae.encoder, vae.decoder

    def forward(self, x: Tensor, eps: Tensor) -> Tensor:
        """Return `loc_img`."""
        z_loc, z_scale = self.encoder(x)
        loc_img: Tensor = self.decoder(z_loc + z_scale * eps)
        return loc_img


def inputs(batch: int, z_dim: int) -> tuple[FloatArray, FloatArray]:
    """Return observations in [0, 1] and noise, the same for each call."""
    random = np.random.RandomState(0)
    x = random.uniform(size=(batch, int(np.prod(DATA_SHAPE)))).astype(np.float32)
    return x, random.standard_normal((batch, z_dim)).astype(np.float32)


class Peers:
    """One model in all forms: exported once, and compiled for one batch size where that is faster.

    Args:
        architecture: Architecture of the networks.
        threads: Number of threads of each way.
        folder: An empty folder for files.
        precisions: Lower precisions of our own bundle.
        checkout: Another checkout of this project, whose exporter and runtime are one of the ways.
    """

    def __init__(
        self,
        architecture: str,
        threads: int,
        folder: Path,
        precisions: tuple[ReducedPrecision, ...] = (),
        checkout: Path | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        vae = VAE(ModelConfig(DATA_SHAPE, architecture=architecture)).eval()
        self.module = Reconstruct(vae).eval().requires_grad_(requires_grad=False)
        self.z_dim = vae.config.z_dim
        self.threads = threads
        self.bundle = folder / "bundle"
        self.stock = folder / "stock.onnx"
        images = torch.rand(64, *DATA_SHAPE, generator=torch.Generator().manual_seed(0))
        limits = dict.fromkeys(precisions, _NO_LIMIT_NATS)
        source = Source("peers", vae, images, "noise", None, train_samples=images)
        export_bundle(source, self.bundle, ["onnx"], precisions=limits)
        self._export_stock()
        self._other_runtime: Any = None
        if checkout is not None:
            self._other_bundle = folder / "beside"
            beside.export(checkout, architecture, self._other_bundle)
            self._other_runtime = beside.load_runtime(checkout)

    def ways(self, names: tuple[str, ...], batch: int) -> Iterator[tuple[str, Way]]:
        """Make the ways of these names, of `PEERS`, for a batch size; those that are not available are left out."""
        torch.compiler.reset()  # compiled code is for one batch size
        simple: dict[str, Callable[[], Way]] = {
            BESIDE: self._beside,
            EAGER: self._eager,
            "TorchScript": self._script,
            STOCK: self._stock,
            SESSION: self._session,
        }
        for name in names:
            if name == OURS:
                yield from self._ours()
            elif name in simple:
                yield name, simple[name]()
            elif name == "OpenVINO" and importlib.util.find_spec("openvino") is not None:
                yield name, self._openvino(batch)
            elif name == "numpy" and hasattr(self.module.encoder, "fc1") and not hasattr(self.module.encoder, "convs"):
                yield name, self._numpy()
            elif name in {"torch.compile", "max-autotune"}:
                yield name, self._compiled("default" if name == "torch.compile" else name, batch)

    def _ours(self) -> Iterator[tuple[str, Way]]:
        """The public call with its checks, in each precision of the bundle."""
        precisions: tuple[Precision, ...] = ("fp32", *edgevae.load(self.bundle).manifest.precisions)
        for precision in precisions:
            model = edgevae.load(self.bundle, provider="cpu", threads=self.threads, precision=precision)
            name = OURS if precision == "fp32" else f"{OURS} {precision}"
            yield name, _of_model(model)

    def _beside(self) -> Way:
        return _of_model(self._other_runtime.load(self._other_bundle, provider="cpu", threads=self.threads))

    def _eager(self) -> Way:
        return _of_torch(self.module)

    def _compiled(self, mode: str, batch: int) -> Way:
        """Compile for one batch size, which is faster; frozen weights help the MLP and slow down convolutions."""
        import torch._inductor.config as inductor

        freezing = not hasattr(self.module.encoder, "convs")
        settings = {"max_autotune_report_choices_stats": False, "autotune_num_choices_displayed": 0}
        quiet: dict[str, Any] = {name: value for name, value in settings.items() if hasattr(inductor, name)}
        with inductor.patch(freezing=freezing, **quiet), torch.inference_mode():
            compiled = torch.compile(self.module, mode=mode, dynamic=False)
            x, eps = inputs(batch, self.z_dim)
            compiled(torch.from_numpy(x), torch.from_numpy(eps))
        return _of_torch(compiled)

    def _script(self) -> Way:
        x, eps = inputs(2, self.z_dim)
        traced = torch.jit.trace(self.module, (torch.from_numpy(x), torch.from_numpy(eps)))
        return _of_torch(torch.jit.freeze(traced))

    def _stock(self) -> Way:
        session = bare_session(self.stock, self.threads)
        return lambda x, eps: session.run(["loc_img"], {"x": x, "eps": eps})[0]

    def _session(self) -> Way:
        """Our own graph in ONNX Runtime, without the checks of the public call."""
        session = bare_session(self.bundle / "reconstruct.onnx", self.threads)
        return lambda x, eps: session.run(["loc_img"], {"x": x, "eps": eps})[0]

    def _export_stock(self) -> None:
        example = tuple(map(torch.from_numpy, inputs(3, self.z_dim)))
        axes = ({0: Dim("batch")}, {0: Dim("batch")})
        traced = torch.export.export(self.module, example, dynamic_shapes=axes)
        with contextlib.redirect_stdout(io.StringIO()):  # the exporter prints its progress
            program = torch.onnx.export(
                traced,
                dynamo=True,
                external_data=False,
                opset_version=_OPSET,
                input_names=["x", "eps"],
                output_names=["loc_img"],
                verbose=False,
            )
        if program is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        program.save(self.stock)

    def _openvino(self, batch: int) -> Way:
        """For one batch size, tuned for latency, in float32; inputs and outputs are shared, not copied."""
        import openvino  # type: ignore[import-untyped, import-not-found, unused-ignore]  # an optional peer, untyped

        core = openvino.Core()
        model = core.read_model(self.stock)
        model.reshape({"x": [batch, int(np.prod(DATA_SHAPE))], "eps": [batch, self.z_dim]})
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": self.threads,
        }
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        return lambda x, eps: request.infer([x, eps], share_inputs=True, share_outputs=True)[0]

    def _numpy(self) -> Way:
        """The reference network in plain NumPy."""
        weights = {name: value.numpy() for name, value in self.module.state_dict().items()}

        def layer(name: str, value: NDArray[Any]) -> NDArray[Any]:
            return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

        def run(x: FloatArray, eps: FloatArray) -> FloatArray:
            hidden = _softplus(layer("encoder.fc1", x))
            z = layer("encoder.fc21", hidden) + np.exp(layer("encoder.fc22", hidden)) * eps
            outputs = layer("decoder.fc21", _softplus(layer("decoder.fc1", z)))
            return np.reciprocal(1 + np.exp(-outputs))

        return run


def bare_session(graph: Path, threads: int) -> Any:
    """Return an `onnxruntime.InferenceSession` of a graph, with default options."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _of_model(model: edgevae.Model) -> Way:
    return lambda x, eps: model.reconstruct(x, eps=eps)


def _of_torch(module: Callable[..., Tensor]) -> Way:
    def run(x: FloatArray, eps: FloatArray) -> FloatArray:
        with torch.inference_mode():
            return module(torch.from_numpy(x), torch.from_numpy(eps)).numpy()

    return run


def _softplus(x: FloatArray) -> FloatArray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
