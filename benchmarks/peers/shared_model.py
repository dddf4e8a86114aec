"""What the peers' servers share: which model, and a function from rows to answers.

It runs in each peer's own environment, so it imports nothing of Treadle. The runner says by environment variables:
BENCH_MODEL lr, rf, gb or mlp; BENCH_FILE its file; BENCH_PORT the first of ten free ports.
"""

import os
import sys

import numpy as np

MODEL = os.environ["BENCH_MODEL"]
FILE = os.environ["BENCH_FILE"]
PORT = int(os.environ["BENCH_PORT"])
HOST = "127.0.0.1"
FEATURES = 30


def load():
    """rows [n, 30] FP32 -> classes [n] INT64 (scikit-learn), or probabilities [n, 2] FP32 (torch)."""
    return _torch() if MODEL == "mlp" else _sklearn()


def _sklearn():
    import joblib

    if np.__version__.startswith("1."):  # it reads what numpy 2 wrote, but for the name of this module
        sys.modules.setdefault("numpy._core.numeric", np.core.numeric)
    return joblib.load(FILE).predict


def _torch():
    import torch
    from torch import nn

    torch.set_num_threads(1)
    model = nn.Sequential(
        nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2), nn.Softmax(dim=1)
    )
    model.load_state_dict(torch.load(FILE, weights_only=True))
    model.eval()

    def predict(rows):
        with torch.inference_mode():
            return model(torch.from_numpy(np.array(rows, dtype=np.float32))).numpy()

    return predict
