"""Check first that the packages which an export needs are installed, to name a missing one in a clear error."""

from edgevae.train import require

require("onnx", "onnxscript", "packaging")
