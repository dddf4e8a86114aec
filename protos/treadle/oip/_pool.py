"""The private descriptor pool of the Open Inference Protocol, and the message classes made from it."""

from importlib.resources import files

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass

FILE = "treadle/oip/inference.proto"


def load() -> tuple[DescriptorPool, FileDescriptor]:
    """A pool of its own, so that tritonclient, kserve or mlserver can live in the same process."""
    described = FileDescriptorSet.FromString(files(__package__).joinpath("inference.binpb").read_bytes())
    pool = DescriptorPool()
    for file in described.file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool, pool.FindFileByName(FILE)


def symbols(file: FileDescriptor) -> dict[str, object]:
    """What an ordinary `_pb2` module would hold: messages, enums and their values, by name."""
    found: dict[str, object] = {name: GetMessageClass(message) for name, message in file.message_types_by_name.items()}
    for name, enum in file.enum_types_by_name.items():
        found[name] = EnumTypeWrapper(enum)
        found.update({value.name: value.number for value in enum.values})
    return found


POOL, DESCRIPTOR = load()
