"""The registry: which models exist, where they came from, what serves.

Reading order:

- `service`: settings, and how the parts are put together
- `servicer`: the contract; decodes, calls the core, encodes
- `models`, `deployments`, `history`: what is kept, and its rules
- `manifest`, `policy`: what a version and a deployment must fulfil before they are kept
- `store`: transactions; `schema` and `migrations`: the tables
- `artifacts`: files under their SHA-256
- `watch`: deployments as they change
"""
