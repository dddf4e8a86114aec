"""Traces, metrics and logs: created once per process and passed as an object, never global.

`telemetry` creates the three and keeps sensitive values out of them (`redaction`); `tracestore` is the built-in trace
store; `edges` declares the spans and signals of a healthy mesh, `metric_catalog` the metrics.
"""
