"""The wire forms of columns and tensors, known in this one package."""
