"""Metadata, configuration and statistics of a model version as protocol messages."""

from treadle import oip
from treadle.inference.batching.metrics import DurationTotal, Statistics
from treadle.inference.models.entry import ServedModel
from treadle.plugins.tensor_spec import TensorSpec
from treadle.rpc.codec.tensors import wire_dtype

_CONFIG_TYPES = {"STRING": oip.TYPE_STRING, "BYTES": oip.TYPE_STRING, "TIMESTAMP": oip.TYPE_INT64}


def metadata(served: ServedModel, versions: list[str]) -> oip.ModelMetadataResponse:
    """Names, datatypes and shapes; -1 for the axis of rows."""
    registered = served.registered
    return oip.ModelMetadataResponse(
        name=registered.key.model,
        versions=versions,
        platform=registered.backend,
        inputs=[_tensor_metadata(spec) for spec in registered.signature.inputs],
        outputs=[_tensor_metadata(spec) for spec in registered.signature.outputs],
    )


def config(served: ServedModel, max_rows: int) -> oip.ModelConfig:
    """Triton's ModelConfig: shapes without the row axis; greedy batching appears as dynamic batching without delay."""
    registered = served.registered
    return oip.ModelConfig(
        name=registered.key.model,
        platform=registered.backend,
        backend=registered.backend,
        max_batch_size=max_rows,
        input=[
            oip.ModelInput(name=s.name, data_type=_config_type(s), dims=s.shape[1:])
            for s in registered.signature.inputs
        ],
        output=[
            oip.ModelOutput(name=s.name, data_type=_config_type(s), dims=s.shape[1:])
            for s in registered.signature.outputs
        ],
        dynamic_batching=oip.ModelDynamicBatching(max_queue_delay_microseconds=0),
        model_transaction_policy=oip.ModelTransactionPolicy(decoupled=False),
    )


def statistics(served: ServedModel) -> oip.ModelStatistics:
    """Counts since the version was loaded."""
    key, totals = served.registered.key, served.observer.statistics
    return oip.ModelStatistics(
        name=key.model,
        version=str(key.version),
        last_inference=totals.last_inference_ms,
        inference_count=totals.rows,
        execution_count=totals.batches,
        inference_stats=_to_infer_statistics(totals),
        batch_stats=[
            oip.InferBatchStatistics(
                batch_size=rows,
                compute_input=_to_duration(size.compute_input),
                compute_infer=_to_duration(size.compute_infer),
            )
            for rows, size in sorted(totals.by_size.items())
        ],
    )


def _to_infer_statistics(totals: Statistics) -> oip.InferStatistics:
    return oip.InferStatistics(
        success=_to_duration(totals.success),
        fail=_to_duration(totals.fail),
        queue=_to_duration(totals.queue),
        compute_input=_to_duration(totals.compute_input),
        compute_infer=_to_duration(totals.compute_infer),
        compute_output=_to_duration(totals.compute_output),
    )


def _to_duration(total: DurationTotal) -> oip.StatisticDuration:
    return oip.StatisticDuration(count=total.count, ns=total.ns)


def _tensor_metadata(spec: TensorSpec) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=wire_dtype(spec.dtype), shape=spec.shape)


def _config_type(spec: TensorSpec) -> oip.DataType.ValueType:
    return _CONFIG_TYPES.get(spec.dtype) or oip.DataType.Value(f"TYPE_{spec.dtype}")
