"""Validation of the names of views, fields, context columns, transforms and feature services.

A feature's full name is "view__field", so no name contains "__" or ends in "_": the full name splits in one way only.
"""

import re
from collections.abc import Iterable
from typing import Final

from treadle.core.errors import InvalidInput

_NAME: Final = re.compile(r"[A-Za-z](?:[A-Za-z0-9]|_(?=[A-Za-z0-9])){0,62}")
_FUNCTION: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def check_name(name: str, what: str) -> None:
    """InvalidInput unless `name` is letters, digits and single inner underscores, 1 to 63 of them."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{what} name {name!r:.80} is not allowed: start with a letter, then letters, digits and single "
            "underscores (not two in a row, not at the end), 63 characters at most"
        )


def check_function(function: str, what: str) -> None:
    """InvalidInput unless it reads "package.module:function"."""
    if not _FUNCTION.fullmatch(function):
        raise InvalidInput(f"{what}: function {function!r:.80} must read 'package.module:function'")


def check_unique(names: Iterable[str], what: str) -> None:
    """InvalidInput when a name occurs twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidInput(f"{what} {name!r} is there twice; give each its own name")
        seen.add(name)


def full_name(view: str, field: str) -> str:
    """The full name of a feature: "view__field"."""
    return f"{view}__{field}"
