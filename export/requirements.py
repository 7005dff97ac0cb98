"""The packages that an export needs, asked for by name before one of them is missed in the middle of an import."""

from edgevae.train import require

require("onnx", "onnxscript", "packaging")
