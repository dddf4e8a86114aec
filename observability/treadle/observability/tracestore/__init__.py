"""The built-in trace store: OTLP in, waterfalls out."""
