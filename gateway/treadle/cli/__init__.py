"""The `treadle` command.

- `main`: the command itself, which imports the module of a command only when that command runs
- `command`: shared by all commands: `--json`, errors, exit statuses, the address of the mesh
- `ui`: input and output at a terminal
- `commands`: one module a command or a group of commands
"""
