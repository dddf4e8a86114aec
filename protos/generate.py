"""Generates the committed stubs beside the contracts: `make protos`.

`treadle/v1` becomes ordinary modules. `treadle/oip` becomes a descriptor set, loaded into a private pool
by `treadle.oip`, and a `.pyi` that gives its messages types.
"""

import os
import sys
import sysconfig
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

HERE = Path(__file__).parent


def _run(*arguments: str) -> None:
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    os.environ["PATH"] = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"  # where protoc-gen-mypy lies
    googleapis = next(Path(p) for p in sys.path if (Path(p) / "google/rpc/status.proto").exists())
    if protoc.main(["protoc", f"-I{HERE}", f"-I{well_known}", f"-I{googleapis}", *arguments]) != 0:
        raise SystemExit(f"protoc failed: {' '.join(arguments)}")


def generate(out: Path = HERE) -> None:
    """Writes every generated file below `out`, which mirrors this folder."""
    contracts = sorted(str(p.relative_to(HERE)) for p in HERE.glob("treadle/v1/*.proto"))
    _run(
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *contracts,
    )
    for empty in out.glob("treadle/v1/*_pb2_grpc.py"):
        if "Servicer" not in empty.read_text():  # a contract without a service
            empty.unlink()
            empty.with_suffix(".pyi").unlink(missing_ok=True)
    inference = "treadle/oip/inference.proto"
    (out / "treadle/oip").mkdir(parents=True, exist_ok=True)
    _run(f"--descriptor_set_out={out / 'treadle/oip/inference.binpb'}", inference)
    _run(f"--mypy_out=quiet:{out}", inference)
    (out / "treadle/oip/inference_pb2.pyi").replace(out / "treadle/oip/messages.pyi")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
