"""Triton with a Python callable (pytriton) over gRPC, with its dynamic batching."""

import numpy as np
import shared_model
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

predict = shared_model.load()
answer = Tensor(name="output", dtype=np.float32, shape=(2,))
if shared_model.MODEL != "mlp":
    answer = Tensor(name="output", dtype=np.int64, shape=(1,))


@batch
def infer(features):
    answers = predict(features)
    return {"output": answers if answers.ndim > 1 else answers[:, None]}


config = TritonConfig(
    grpc_address=shared_model.HOST,
    grpc_port=shared_model.PORT,
    http_address=shared_model.HOST,
    http_port=shared_model.PORT + 1,
    allow_metrics=False,
    log_verbose=0,
)
with Triton(config=config) as triton:
    triton.bind(
        model_name=shared_model.MODEL,
        infer_func=infer,
        inputs=[Tensor(name="features", dtype=np.float32, shape=(shared_model.FEATURES,))],
        outputs=[answer],
        config=ModelConfig(
            batching=True,
            max_batch_size=1024,
            # No delay was as fast at 64 in flight as 1 or 2 ms, and is better for a lone request.
            batcher=DynamicBatcher(max_queue_delay_microseconds=0),
        ),
    )
    triton.serve()
