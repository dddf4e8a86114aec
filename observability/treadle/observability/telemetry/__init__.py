"""What a process emits: traces, metrics and logs, with values redacted."""
