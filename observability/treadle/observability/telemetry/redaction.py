"""Redaction of telemetry: values of sensitive columns, secrets, and undeclared attributes never leave the process.

A `Redactor` holds the sensitive names. Values under these names are removed from log lines; span attributes are kept
only under known prefixes, and never under a sensitive name. Exceptions of other libraries often quote a value, so only
their type is kept.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Status
from opentelemetry.util.types import AttributeValue

REDACTED = "[redacted]"

SECRETS = frozenset(
    {
        "apikey", "authorization", "bearer", "cookie", "credential", "credentials", "passphrase", "passwd",
        "password", "secret", "secrets", "token", "tokens",
    }
)  # fmt: skip
"""Words that make a name secret at any position: `db_password`, `x-auth-token`, `apiKey`."""

ALLOWED_PREFIXES = (
    "client.", "code.", "error.", "feature_flag.", "http.", "network.", "process.", "rpc.", "server.", "service.",
    "telemetry.", "treadle.", "url.scheme",
)  # fmt: skip
"""The prefixes of exported span attributes; all other attributes are dropped."""

_DROPPED_PREFIXES = (
    "rpc.request.",
    "rpc.response.",
    "http.request.header.",
    "http.response.header.",
    "http.url",
    "http.target",
    "process.command",
)
_ALLOWED_EVENT_KEYS = ("exception.type", "exception.escaped")
_WORDS = re.compile(r"[a-z0-9]+|[A-Z]+(?![a-z])|[A-Z][a-z0-9]*")
_SAFE_MODULES = ("treadle.", "grpc.")
_SAFE_TYPES = (OSError, ImportError, MemoryError)
_MAX_DEPTH = 6
_MAX_REMEMBERED = 10_000  # names of attributes may come from peers


class Redactor:
    """The names whose values are withheld. Applied feature views add names. Safe to share between threads."""

    def __init__(self, sensitive: Iterable[str] = ()) -> None:
        self._sensitive: frozenset[str] = frozenset()
        self._verdicts: dict[str, bool] = {}
        self.add(*sensitive)

    def add(self, *names: str) -> None:
        """Adds sensitive names of columns, regardless of case."""
        self._sensitive = self._sensitive | {name.casefold() for name in names}
        self._verdicts = {}

    def withholds(self, key: str) -> bool:
        """Whether values under `key` are withheld: the key, or a dotted part of it, is sensitive or a secret."""
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._is_withheld(key)
            if len(self._verdicts) < _MAX_REMEMBERED:
                self._verdicts[key] = verdict
        return verdict

    def _is_withheld(self, key: str) -> bool:
        folded = key.casefold()
        parts = folded.split(".")
        if any(
            ".".join(parts[i:j]) in self._sensitive for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)
        ):
            return True
        words = [word.lower() for word in _WORDS.findall(key)]
        return not SECRETS.isdisjoint(words) or ("api", "key") in itertools.pairwise(words)

    def clean(self, value: Any, depth: int = 0) -> Any:
        """`value` with the values under sensitive keys replaced, in nested mappings and sequences too."""
        if isinstance(value, str | bytes | int | float | None):
            return value
        if depth >= _MAX_DEPTH:
            return "…"
        if isinstance(value, BaseException):
            return describe(value)
        if isinstance(value, Mapping):
            return {
                key: REDACTED if isinstance(key, str) and self.withholds(key) else self.clean(item, depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, Sequence | set | frozenset):
            return [self.clean(item, depth + 1) for item in value]
        return value


def message_is_safe(error: BaseException) -> bool:
    """Whether the message of an error may be shown: those of Treadle and of the system never quote values."""
    return type(error).__module__.startswith(_SAFE_MODULES) or isinstance(error, _SAFE_TYPES)


def describe(error: BaseException) -> str:
    """The type of an error, with its message if that cannot quote values."""
    name = type(error).__name__
    return f"{name}: {error}" if message_is_safe(error) else name


class SpanGuard:
    """Copies finished spans without attributes that may hold a value, as the last step before export."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._declared: dict[str, bool] = {}

    def allows(self, key: str) -> bool:
        """Whether an attribute of this name may be exported."""
        declared = self._declared.get(key)
        if declared is None:
            declared = key.startswith(ALLOWED_PREFIXES) and not key.startswith(_DROPPED_PREFIXES)
            if len(self._declared) < _MAX_REMEMBERED:
                self._declared[key] = declared
        return declared and not self._redactor.withholds(key)

    def clean(self, span: ReadableSpan) -> ReadableSpan:
        """A copy of `span` with allowed attributes only, and without messages and stack traces of exceptions.

        The description of the status is dropped too, because the SDK stores the text of the exception there.
        """
        return ReadableSpan(
            name=span.name,
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=self._kept(span.attributes),
            events=[
                Event(event.name, self._kept(event.attributes, _ALLOWED_EVENT_KEYS), event.timestamp)
                for event in span.events
            ],
            links=[Link(link.context, self._kept(link.attributes)) if link.attributes else link for link in span.links],
            kind=span.kind,
            status=Status(span.status.status_code),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    def _kept(
        self, attributes: Mapping[str, AttributeValue] | None, also_allowed: Sequence[str] = ()
    ) -> dict[str, AttributeValue]:
        """The allowed attributes, and those named in `also_allowed`."""
        if not attributes:
            return {}
        return {key: value for key, value in attributes.items() if key in also_allowed or self.allows(key)}


class GuardedExporter(SpanExporter):
    """An exporter of redacted spans. It runs on the exporting thread, off the request path."""

    def __init__(self, guard: SpanGuard, exporter: SpanExporter) -> None:
        self._guard = guard
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._exporter.export([self._guard.clean(span) for span in spans])

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)
