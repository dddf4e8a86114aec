"""Ray Serve over gRPC, with the Open Inference Protocol's messages and serve.batch; one replica."""

import os
import signal
import tempfile

import numpy as np
import ray
import shared_model
from ray import serve
from ray.serve.config import gRPCOptions
from tritonclient.grpc import service_pb2

_NAMES = {"int64": "INT64", "float32": "FP32"}


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
class Model:
    def __init__(self):
        self._predict = shared_model.load()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def answers(self, requests):
        answers = self._predict(np.concatenate(requests))
        return np.split(answers, np.cumsum([len(rows) for rows in requests])[:-1])

    async def ModelInfer(self, request):
        rows = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(tuple(request.inputs[0].shape))
        answers = await self.answers(rows)
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name="output", datatype=_NAMES[answers.dtype.name], shape=answers.shape)
        response.raw_output_contents.append(answers.tobytes())
        return response


# Without these it writes a token into the home folder and reports its use.
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
ray.init(
    num_cpus=2,
    include_dashboard=False,
    log_to_driver=False,
    _node_ip_address=shared_model.HOST,
    _temp_dir=tempfile.gettempdir(),
)
serve.start(
    http_options={"host": shared_model.HOST, "port": shared_model.PORT + 1},
    grpc_options=gRPCOptions(
        port=shared_model.PORT,
        grpc_servicer_functions=["tritonclient.grpc.service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"],
    ),
)
serve.run(Model.bind(), route_prefix="/")
signal.sigwait({signal.SIGTERM, signal.SIGINT})
serve.shutdown()
ray.shutdown()
