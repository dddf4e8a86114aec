"""Traces, metrics and logs: made once per process, handed down as an object, never global.

`telemetry` composes the three; `redaction` keeps sensitive values out of all of them; `store`, `model` and
`waterfall` are the built-in place to look at traces; `edges` says what a healthy mesh must emit.
"""
