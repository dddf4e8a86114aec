"""Encoding and decoding of columns and tensors: the only package that knows their wire forms."""
