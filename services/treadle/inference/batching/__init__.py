"""Greedy batching: queue, threads, latency model, metrics."""
