"""The private descriptor pool of the Open Inference Protocol, and the message classes made from it."""

from importlib.resources import files

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass

FILE = "treadle/oip/inference.proto"


def load() -> tuple[DescriptorPool, FileDescriptor]:
    """Loads the protocol into a new pool, so that tritonclient, kserve or mlserver can be imported beside it."""
    described = FileDescriptorSet.FromString(files(__package__).joinpath("inference.binpb").read_bytes())
    pool = DescriptorPool()
    for file in described.file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool, pool.FindFileByName(FILE)


def symbols(file: FileDescriptor) -> dict[str, object]:
    """The names that a generated `_pb2` module would define: messages, enums and their values."""
    found: dict[str, object] = {name: GetMessageClass(message) for name, message in file.message_types_by_name.items()}
    for name, enum in file.enum_types_by_name.items():
        found[name] = EnumTypeWrapper(enum)
        found.update({value.name: value.number for value in enum.values})
    return found


POOL, DESCRIPTOR = load()
