"""Evaluation reports as HTML and Markdown."""
