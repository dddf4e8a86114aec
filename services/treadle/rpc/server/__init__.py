"""The server side of every RPC: instrumentation, status, streams."""
