"""Evaluation of a model version on a dataset: metrics, intervals, slices, gates."""
