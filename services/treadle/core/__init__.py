"""What everything may use, and what knows no RPC: columns and their types, errors, settings, files, tasks, limits."""
