"""MLServer over gRPC: adaptive batching on, inference in the server's own process, metrics and access logs off."""

import json
import os
import sys
import tempfile
from pathlib import Path

import shared_model

implementation = "runtime.Runtime" if shared_model.MODEL == "mlp" else "mlserver_sklearn.SKLearnModel"
folder = Path(tempfile.mkdtemp(prefix="bench-mlserver-"))
settings = {
    "host": shared_model.HOST,
    "http_port": shared_model.PORT + 1,
    "grpc_port": shared_model.PORT,
    "metrics_endpoint": None,
    "parallel_workers": 0,
    "debug": False,
    "cache_enabled": False,
}
model = {
    "name": shared_model.MODEL,
    "implementation": implementation,
    "max_batch_size": 64,
    "max_batch_time": float(os.environ["BENCH_BATCH_SECONDS"]),
    "parameters": {"uri": shared_model.FILE},
}
(folder / "settings.json").write_text(json.dumps(settings))
(folder / "model-settings.json").write_text(json.dumps(model))
os.execv(Path(sys.executable).with_name("mlserver"), ["mlserver", "start", str(folder)])
