"""Rules for names and texts, and the collector of a request's violations."""

import re
from collections import Counter
from collections.abc import Iterable

from treadle.core.errors import InvalidInput, Violation

NAME_RULE = "[a-z0-9][a-z0-9._-]{0,127}"
_NAME = re.compile(NAME_RULE)
_DIGEST = re.compile("[0-9a-f]{64}")
_MAX_TEXT_CHARACTERS = 10_000


class ViolationCollector:
    """Collects all violations of one request, so that its author can correct them at once."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._found: list[Violation] = []

    def add(self, field: str, description: str) -> None:
        """Adds a violation of one field."""
        self._found.append(Violation(field, description))

    def check_name(self, field: str, value: str) -> None:
        """Checks the name of a model, deployment, alias or fallback step."""
        if not _NAME.fullmatch(value):
            self.add(field, f"must match {NAME_RULE}")

    def check_text(self, field: str, value: str, longest: int = _MAX_TEXT_CHARACTERS) -> None:
        """Checks free text of at most `longest` characters. NUL is refused because PostgreSQL cannot store it."""
        if "\0" in value:
            self.add(field, "must not contain the character NUL")
        if len(value) > longest:
            self.add(field, f"has {len(value)} characters, at most {longest} are kept")

    def check_digest(self, field: str, value: str) -> None:
        """Checks a SHA-256 in lower-case hex; nothing else may become part of a path."""
        if not _DIGEST.fullmatch(value):
            self.add(field, "must be a SHA-256: 64 lower-case hex digits")

    def check_unique(self, field: str, items: Iterable[object]) -> None:
        """Checks that no item occurs twice."""
        for item, count in Counter(items).items():
            if count > 1:
                self.add(field, f"has {item} twice")

    def raise_if_any(self) -> None:
        """Raises InvalidInput with all violations, if there are any."""
        if self._found:
            first = self._found[0]
            more = f" (and {len(self._found) - 1} more)" if len(self._found) > 1 else ""
            raise InvalidInput(f"{self._what}: {first.field} {first.description}{more}", self._found)
