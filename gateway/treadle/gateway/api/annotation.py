"""What the span of a request says of its prediction."""

from treadle.gateway.pipeline.batch.prediction import PredictionResult
from treadle.rpc import tracing


def annotate(deployment: str, prediction: PredictionResult) -> None:
    """Adds deployment, model, rows and what degraded the answer to the span of the present request.

    A request whose answer is degraded leaves a span whether it is sampled or not.
    """
    if not prediction.degraded_reason and not tracing.is_recording():
        return
    attributes: dict[str, str | int] = {
        "treadle.deployment": deployment,
        "treadle.model": prediction.ref.model,
        "treadle.version": prediction.ref.version,
        "treadle.rows": len(prediction.prediction_ids),
        "treadle.served_by": prediction.served_by,
    }
    if prediction.degraded_reason:
        attributes["treadle.degraded_reason"] = prediction.degraded_reason
        tracing.keep_span(attributes)
    else:
        tracing.annotate(attributes)
