"""The error that ends a command. This module imports no grpc, so that the supervisor and `--help` stay light."""

from collections.abc import Mapping, Sequence
from typing import Any

NOT_RUNNING_HINT = "is the mesh running? Start it with: treadle up"


class CommandError(Exception):
    """Ends a command with exit status 1 and a message: what is wrong, where, and (`hint`) what to do."""

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
        """The errors in fields of a request: {"field": …, "description": …}."""

    def as_json(self) -> Mapping[str, Any]:
        """The error as a JSON object, for `--json` and the control socket."""
        error = {"code": self.code, "message": self.message, "hint": self.hint, "violations": self.violations}
        return {"error": error}
