"""Every contract of the mesh."""

from collections.abc import Iterator

from google.protobuf.descriptor import ServiceDescriptor

from treadle import oip
from treadle.v1 import evaluation_pb2, features_pb2, prediction_pb2, registry_pb2, traces_pb2


def services() -> Iterator[ServiceDescriptor]:
    """Treadle's own services, and the Open Inference Protocol's."""
    for contract in (evaluation_pb2, features_pb2, prediction_pb2, registry_pb2, traces_pb2):
        yield from contract.DESCRIPTOR.services_by_name.values()
    yield oip.POOL.FindServiceByName(oip.SERVICE)


# Health checks come every few seconds from machines and tell nothing about requests; spans about the sending or the
# reading of spans would fill the trace store with itself.
_UNTRACED = ("/grpc.health.", "/grpc.reflection.", "/opentelemetry.", "/treadle.v1.TraceQueryService/")


def is_traced(path: str) -> bool:
    """Whether calls of the method "/package.Service/Method" may leave spans, on either side."""
    return not path.startswith(_UNTRACED)
