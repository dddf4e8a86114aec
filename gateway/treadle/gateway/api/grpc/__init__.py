"""gRPC entry points: PredictionService, the Open Inference Protocol, and calls passed through to other services."""
