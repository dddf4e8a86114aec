"""The registry: models, their versions and lineage, and the deployments that serve them.

Reading order:

- `service`: settings and composition root
- `servicer`: the gRPC servicer; decodes, calls the core, encodes
- `models`, `deployments`, `history`: the stored objects and their rules
- `manifest`, `policy`: validation of model versions and deployments before they are stored
- `store`: transactions; `schema` and `migrations`: the tables
- `artifacts`: content-addressed files
- `watch`: streams of deployment changes
"""
