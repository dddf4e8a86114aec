"""The `treadle` command, and the supervisor behind `treadle up`.

- `main`: the command itself; its groups import a command's module only when that command runs
- `command`, `output`: what all commands share: `--json`, errors, exit codes, tables
- `services`: which services make a mesh, and on which ports
- `supervisor`: `Mesh`, which runs them as child processes; `control` reaches a running one
- `commands`: one module a command
"""
