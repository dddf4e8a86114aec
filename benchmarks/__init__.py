"""Treadle beside its peers: the same models, the same requests, the same two cores. `make bench` runs it."""
