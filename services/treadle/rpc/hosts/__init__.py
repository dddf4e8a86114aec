"""The hosts of services: `grpcio` works everywhere, `envoy` is faster; `choice` picks one."""
