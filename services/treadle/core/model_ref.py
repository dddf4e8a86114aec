"""`ModelRef`: the one type for "a model and one of its versions"."""

import re
from typing import NamedTuple, Self

from treadle.core.errors import InvalidInput
from treadle.core.numbers import whole_number

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_VERSION_LIMIT = 1 << 63
"""Versions are below this: the contracts hold them as int64."""


class ModelRef(NamedTuple):
    """A model and the number of one of its versions; version 0 means no version."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"{self.model}/{self.version}"

    @classmethod
    def checked(cls, model: str, version: int) -> Self:
        """A reference whose model name can be a folder name; InvalidInput for any other name, or a version below 1."""
        if not _NAME.fullmatch(model) or not 1 <= version < _VERSION_LIMIT:
            raise InvalidInput(f"{model[:128]!r} version {version} is no model version")
        return cls(model, version)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The reference in a text "model/version", checked; InvalidInput for any other text."""
        model, _, version = text.rpartition("/")
        return cls.checked(model, whole_number(version) or 0)
