"""A plain grpc.aio server of the Open Inference Protocol: one function from rows to answers, called once a request."""

import asyncio

import grpc
import numpy as np
import shared_model
from tritonclient.grpc import service_pb2, service_pb2_grpc

_NAMES = {"int64": "INT64", "float32": "FP32"}


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, predict):
        self._predict = predict

    async def ModelInfer(self, request, context):
        rows = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(request.inputs[0].shape)
        answers = self._predict(rows)
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name="output", datatype=_NAMES[answers.dtype.name], shape=answers.shape)
        response.raw_output_contents.append(answers.tobytes())
        return response


async def serve(predict):
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(predict), server)
    server.add_insecure_port(f"{shared_model.HOST}:{shared_model.PORT}")
    await server.start()
    await server.wait_for_termination()


def run(predict):
    asyncio.run(serve(predict))
