"""The service that server.py starts."""

import bentoml
import numpy as np
import shared_model


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 512})
class Service:
    def __init__(self) -> None:
        self._predict = shared_model.load()

    # A limit of latency that load reaches makes it refuse requests; a minute is never reached.
    @bentoml.api(batchable=True, batch_dim=0, max_batch_size=64, max_latency_ms=60_000, route="/predict")
    def predict(self, features: np.ndarray) -> np.ndarray:
        return self._predict(np.asarray(features, dtype=np.float32))
