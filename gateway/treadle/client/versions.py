"""The registry stub of a client, and resolution of version references."""

from functools import cached_property

from treadle.client.connection import Connection
from treadle.client.references import VersionReference
from treadle.v1 import registry_pb2_grpc, types_pb2


class RegistryConnection(Connection):
    """Base class of the parts of a client that use model versions."""

    @cached_property
    def _registry(self) -> "registry_pb2_grpc.RegistryServiceAsyncStub":
        return registry_pb2_grpc.RegistryServiceStub(self.channel)

    async def _resolve(self, version: str) -> types_pb2.ModelRef:
        """The version that "model/3" or "model@alias" names now. Only aliases are looked up; NotFound."""
        reference = VersionReference.parse(version)
        if not reference.alias:
            return types_pb2.ModelRef(model=reference.model, version=reference.version)
        return (await self._registry.GetModelVersion(reference.request())).ref
