"""What a service is hosted by: `grpcio` (works everywhere) or `treadle.rpc.envoy` (faster). `choice` says which."""
