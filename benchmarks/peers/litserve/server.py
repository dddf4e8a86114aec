"""LitServe over HTTP: one worker, batching, its fast queue."""

import litserve
import numpy as np
import shared_model


class Api(litserve.LitAPI):
    def setup(self, device):
        self._predict = shared_model.load()

    def decode_request(self, request):
        return np.array(request["features"], dtype=np.float32)

    def batch(self, inputs):
        self._sizes = [len(rows) for rows in inputs]
        return np.concatenate(inputs)

    def predict(self, rows):
        return self._predict(rows)

    def unbatch(self, answers):
        return np.split(answers, np.cumsum(self._sizes)[:-1])

    def encode_response(self, answers):
        return {"outputs": answers.tolist()}


if __name__ == "__main__":
    api = Api(max_batch_size=64, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host=shared_model.HOST,
        port=shared_model.PORT,
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
