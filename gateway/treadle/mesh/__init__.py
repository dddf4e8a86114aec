"""The local mesh: all services as supervised child processes."""
