"""The private pool: same wire as tritonclient's own stubs, importable beside them."""

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2, service_pb2

from treadle import oip


def _ours() -> list[str]:
    def walk(message: Descriptor) -> list[str]:
        return [message.full_name, *(name for nested in message.nested_types for name in walk(nested))]

    return [name for message in oip.DESCRIPTOR.message_types_by_name.values() for name in walk(message)]


def _theirs(name: str) -> Descriptor:
    found: Descriptor = service_pb2.DESCRIPTOR.pool.FindMessageTypeByName(name)
    return found


@pytest.mark.parametrize("name", _ours())
def test_every_field_we_define_is_tritons(name: str) -> None:
    ours, theirs = oip.POOL.FindMessageTypeByName(name), _theirs(name)
    for field in ours.fields:
        other = theirs.fields_by_number[field.number]
        assert (field.name, field.type, field.is_repeated) == (other.name, other.type, other.is_repeated)


def test_enum_numbers_are_tritons() -> None:
    assert dict(oip.DataType.items()) == dict(model_config_pb2.DataType.items())


def test_every_rpc_is_described() -> None:
    described = oip.POOL.FindServiceByName(oip.SERVICE)
    assert {m.name for m in described.methods} == {m.name for m in oip.METHODS}
    for method in oip.METHODS:
        found = described.methods_by_name[method.name]
        assert (found.input_type.full_name, found.output_type.full_name) == (
            method.request.DESCRIPTOR.full_name,
            method.response.DESCRIPTOR.full_name,
        )
        assert found.client_streaming == found.server_streaming == method.streams


def test_messages_travel_between_the_two_sets_of_stubs() -> None:
    ours = oip.ModelInferRequest(model_name="m", id="7", raw_input_contents=[b"\0\0\0\0"])
    ours.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    ours.parameters["priority"].uint64_param = 3
    theirs: Message = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())
    assert oip.ModelInferRequest.FromString(theirs.SerializeToString()) == ours
