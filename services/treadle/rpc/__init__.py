"""How Treadle's processes talk: one server seam, one client seam, one error tree, one table type.

- `errors`: every error, with its gRPC code and whether it may be retried
- `columns`: the typed table that travels, and its codec
- `context`: what the present call knows: deadline, tenant, metadata
- `channel`: the client seam
- `server`: the server seam
- `service`, `serving`: what a service is, and how it is run
"""
