"""The Envoy host: the same servicers, with a real Envoy in front of them in the same process.

Envoy (C++) does HTTP/2, TLS, limits, access logs and request spans; Python sees the bytes of messages. pyvoy is the
bridge: a dynamic module of Envoy that calls an ASGI application on an event loop of its own.

- `grpc_framing`: gRPC's framing, metadata, timeouts and status on HTTP
- `call`: one call: what a servicer knows as its context
- `adapter`: the ASGI application: requests to handlers, answers to responses; deadlines and cancellation
- `config`, `tracing`: Envoy's configuration
- `process`: becoming an Envoy, draining, and ending
"""
