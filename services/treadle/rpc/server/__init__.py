"""The server side of every call: instrumentation of gRPC and HTTP, status, streams."""
