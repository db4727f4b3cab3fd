"""Linear ops as geometry and as numbers; no ONNX."""
