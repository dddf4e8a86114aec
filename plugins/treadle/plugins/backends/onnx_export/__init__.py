"""Conversion of the models of other frameworks to ONNX graphs."""
