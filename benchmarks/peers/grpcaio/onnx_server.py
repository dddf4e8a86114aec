"""Plain grpc.aio that calls ONNX Runtime for each request."""

import oip_server
import onnxruntime
import shared_model


def convert():
    """The model as ONNX bytes, answering the class alone (scikit-learn) or the probabilities (torch)."""
    import joblib
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    model = joblib.load(shared_model.FILE)
    kinds = [("features", FloatTensorType([None, shared_model.FEATURES]))]
    return to_onnx(model, initial_types=kinds, options={id(model): {"zipmap": False}}).SerializeToString()


def load():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(convert(), options, providers=["CPUExecutionProvider"])
    name = session.get_outputs()[0].name
    return lambda rows: session.run([name], {"features": rows})[0]


oip_server.run(load())
