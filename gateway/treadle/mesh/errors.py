"""What a command says when it can't go on. (No grpc here: the supervisor and `--help` stay light.)"""

from collections.abc import Mapping, Sequence
from typing import Any

IS_IT_RUNNING = "is the mesh running? Start it with: treadle up"


class CommandError(Exception):
    """Ends a command with exit status 1 and one line: what is wrong, where, and what to do."""

    def __init__(
        self,
        message: str,
        hint: str = "",
        code: str = "FAILED_PRECONDITION",
        violations: Sequence[Mapping[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        self.violations = list(violations)
        """What is wrong with which field of a request: {"field": …, "description": …}."""

    def as_json(self) -> Mapping[str, Any]:
        """The machine form."""
        told = {"code": self.code, "message": self.message, "hint": self.hint, "violations": self.violations}
        return {"error": told}
