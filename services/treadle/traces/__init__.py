"""The built-in trace store as a service: OTLP in, slow traces and waterfalls out."""
