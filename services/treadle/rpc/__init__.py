"""How Treadle's processes call each other over gRPC, and answer HTTP.

- `context`: the request context of a call: deadline, tenant, trace, metadata
- `client`: `Channel`, through which every outbound call leaves
- `server`: `Server`, which instruments every handler, and `TelemetryMiddleware`, which instruments HTTP requests
- `codec`: the wire form of columns and tensors
- `hosts`: what answers the network: grpcio with uvicorn, or Envoy
- `app`: a process of the mesh and the services that it runs
"""
