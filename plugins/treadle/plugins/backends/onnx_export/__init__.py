"""Models of other frameworks as ONNX graphs."""
