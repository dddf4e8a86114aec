"""The built-in trace store: it receives spans over OTLP and shows traces as waterfalls."""
