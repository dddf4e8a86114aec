"""Benchmarks of Treadle and its peers with the same models, requests and cores. `make bench` runs them."""
