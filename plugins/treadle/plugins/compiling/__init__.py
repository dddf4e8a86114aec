"""Compiling of models: a faster form that is verified to answer like the original."""
