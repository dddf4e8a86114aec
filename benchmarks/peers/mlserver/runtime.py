"""A runtime of MLServer for one function from rows to answers; batching is MLServer's own."""

import shared_model
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Runtime(MLModel):
    async def load(self) -> bool:
        self._predict_rows = shared_model.load()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        output = NumpyCodec.encode_output("output", self._predict_rows(rows))
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])
