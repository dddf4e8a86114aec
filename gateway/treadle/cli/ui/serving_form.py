"""A sentence that says which form of a model serves: the original or the compiled one, and why."""

from treadle.v1 import registry_pb2


def serving_form(manifest: registry_pb2.Manifest) -> str:
    """The form that serves: "onnx, compiled from sklearn: 12.0× as fast for 1 row, …" or "sklearn; not compiled: …"."""
    compiled = manifest.compiled
    if not manifest.HasField("compiled"):
        return manifest.backend
    if compiled.reason:
        return f"{manifest.backend}; not compiled: {compiled.reason}"
    return f"{compiled.backend}, compiled from {manifest.backend}: {_speeds(compiled)}; {_checked(compiled)}"


def _speeds(compiled: registry_pb2.Compiled) -> str:
    """The speed-up for each measured number of rows."""
    times = [(s.rows, s.original_micros / max(s.compiled_micros, 1e-3)) for s in compiled.speeds]
    texts = [f"{ratio:.1f}× as fast for {rows:,} row{'' if rows == 1 else 's'}" for rows, ratio in times]
    return ", ".join(texts) or "speed not measured"


def _checked(compiled: registry_pb2.Compiled) -> str:
    ties = f", {compiled.ties:,} labels differ where classes tie" if compiled.ties else ""
    return (
        f"checked on {compiled.rows_checked:,} rows, largest difference {compiled.largest_difference:.1e}{ties} "
        f"(tolerance {compiled.relative_tolerance:.1e} relative + {compiled.absolute_tolerance:.1e} absolute)"
    )
