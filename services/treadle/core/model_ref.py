"""The name of a model version, wherever one is named."""

import re
from typing import NamedTuple, Self

from treadle.core.errors import InvalidInput
from treadle.core.numbers import whole_number

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_END_OF_VERSIONS = 1 << 63
"""The contracts hold versions as int64."""


class ModelRef(NamedTuple):
    """A model and the number of one of its versions; version 0 means none."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"{self.model}/{self.version}"

    @classmethod
    def checked(cls, model: str, version: int) -> Self:
        """A reference whose parts can be folder names; InvalidInput for any other."""
        if not _NAME.fullmatch(model) or not 1 <= version < _END_OF_VERSIONS:
            raise InvalidInput(f"{model[:128]!r} version {version} is no model version")
        return cls(model, version)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The checked reference that `str` wrote; InvalidInput for any other text."""
        model, _, version = text.rpartition("/")
        return cls.checked(model, whole_number(version) or 0)
