"""Rules for names and texts, and the list in which a validation gathers what is wrong."""

import re
from collections import Counter
from collections.abc import Iterable

from treadle.core.errors import InvalidInput, Violation

NAME_RULE = "[a-z0-9][a-z0-9._-]{0,127}"
_NAME = re.compile(NAME_RULE)
_DIGEST = re.compile("[0-9a-f]{64}")
_LONGEST_TEXT = 10_000


class Problems:
    """Everything wrong with one request, so that its author can mend it in one go."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._found: list[Violation] = []

    def add(self, field: str, description: str) -> None:
        """Notes one thing wrong with one field."""
        self._found.append(Violation(field, description))

    def name(self, field: str, value: str) -> None:
        """A name of a model, a deployment, an alias or a fallback step."""
        if not _NAME.fullmatch(value):
            self.add(field, f"must match {NAME_RULE}")

    def text(self, field: str, value: str, longest: int = _LONGEST_TEXT) -> None:
        """Free text. NUL is refused because PostgreSQL cannot keep it."""
        if "\0" in value:
            self.add(field, "must not contain the character NUL")
        if len(value) > longest:
            self.add(field, f"has {len(value)} characters, at most {longest} are kept")

    def digest(self, field: str, value: str) -> None:
        """A SHA-256 as lower-case hex: nothing else may become part of a path."""
        if not _DIGEST.fullmatch(value):
            self.add(field, "must be a SHA-256: 64 lower-case hex digits")

    def once(self, field: str, items: Iterable[object]) -> None:
        """Items that must all differ."""
        for item, count in Counter(items).items():
            if count > 1:
                self.add(field, f"has {item} twice")

    def raise_if_any(self) -> None:
        """InvalidInput with all that was found."""
        if self._found:
            first = self._found[0]
            more = f" (and {len(self._found) - 1} more)" if len(self._found) > 1 else ""
            raise InvalidInput(f"{self._what}: {first.field} {first.description}{more}", self._found)
