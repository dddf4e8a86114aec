"""Text form of model versions: "flight-delay/3", or by alias "flight-delay@champion"."""

import re
from typing import NamedTuple

from treadle.core.errors import InvalidInput
from treadle.v1 import registry_pb2, types_pb2

_VERSION = re.compile(r"([a-z0-9][a-z0-9._-]{0,127})/([1-9][0-9]*)")
_ALIAS = re.compile(r"([a-z0-9][a-z0-9._-]{0,127})@([a-z0-9][a-z0-9._-]{0,127})")


class VersionReference(NamedTuple):
    """A model version by number, or (version 0) by alias."""

    model: str
    version: int
    alias: str = ""

    @classmethod
    def parse(cls, text: str) -> "VersionReference":
        """Parses "model/3" or "model@alias"; InvalidInput for other text."""
        if found := _VERSION.fullmatch(text):
            return cls(found[1], int(found[2]))
        if found := _ALIAS.fullmatch(text):
            return cls(found[1], 0, found[2])
        raise InvalidInput(f"{text!r} names no model version; write model/3 or model@alias")

    def request(self) -> registry_pb2.GetModelVersionRequest:
        """The registry request for this version."""
        if self.alias:
            return registry_pb2.GetModelVersionRequest(model=self.model, alias=self.alias)
        return registry_pb2.GetModelVersionRequest(model=self.model, version=self.version)


def format_ref(ref: types_pb2.ModelRef) -> str:
    """Formats a reference as "flight-delay/3"; "" without a model."""
    return f"{ref.model}/{ref.version}" if ref.model else ""
