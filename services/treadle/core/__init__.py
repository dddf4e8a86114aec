"""What every package may use, without any RPC: columns and data types, errors, settings, files, tasks, limits."""
