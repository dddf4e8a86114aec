"""What a service is hosted by: `grpcio` (works everywhere) or `envoy` (faster). `choice` says which."""
