"""The scope of a run: which cells are measured, how often, and for how long."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Seconds and repeats. Cells of targets are repeated; the rest of the matrix is measured once."""

    name: str
    models: tuple[str, ...]
    peers: tuple[str, ...]
    """The models to measure; empty means all."""
    seconds: float
    repeats: int
    """Repeats of the cells of targets."""
    matrix: tuple[tuple[int, int], ...]
    """Further cells: rows of a request and requests in flight."""
    matrix_seconds: float
    lone_requests: int
    lone_seconds: float
    """Sequential requests: this number, or as many as fit in the time."""
    rows: tuple[int, ...]
    """Rows of a request, for the curve of rows a second."""
    rate: float
    """Requests a second of the open loop; 0 means no open loop."""
    rate_seconds: float


_TARGET_CELL = (1, 64)
_MATRIX = tuple((rows, flight) for rows in (1, 64) for flight in (1, 16, 64) if (rows, flight) != _TARGET_CELL)

FULL = Effort(
    "full", ("lr", "rf", "gb", "mlp"), (), seconds=3.0, repeats=3, matrix=_MATRIX, matrix_seconds=1.5,
    lone_requests=2_000, lone_seconds=3.5, rows=(1, 4, 16, 64, 256, 1024), rate=100.0, rate_seconds=4.0,
)  # fmt: skip
QUICK = Effort(
    "quick", ("lr", "rf", "mlp"), ("mlserver", "mlserver-wide", "pytriton", "fastapi", "grpcaio"),
    seconds=3.0, repeats=3, matrix=(), matrix_seconds=2.0, lone_requests=2_000, lone_seconds=3.5, rows=(), rate=0.0,
    rate_seconds=0.0,
)  # fmt: skip
