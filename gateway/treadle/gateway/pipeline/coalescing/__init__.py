"""Concurrent requests become batches."""
