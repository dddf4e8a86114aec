"""What must never leave the process: values of sensitive columns, secrets, and whatever nobody declared.

A `Redactor` holds the names that are sensitive. Log lines lose the values under those names; span attributes
are kept only under known prefixes, and never under a sensitive name. Exceptions of foreign libraries often
quote the value they choked on, so their messages are dropped and only their type is kept.
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
"""Words that mark a name as secret wherever they stand in it: `db_password`, `x-auth-token`, `apiKey`."""

ALLOWED_PREFIXES = (
    "client.", "code.", "error.", "feature_flag.", "http.", "network.", "process.", "rpc.", "server.", "service.",
    "telemetry.", "treadle.", "url.scheme",
)  # fmt: skip
"""Span attributes outside these are dropped: an attribute is declared before it is used."""

_DROPPED = (
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
    """The names whose values are withheld. Grows as feature views are applied; safe to share between threads."""

    def __init__(self, sensitive: Iterable[str] = ()) -> None:
        self._sensitive: frozenset[str] = frozenset()
        self._verdicts: dict[str, bool] = {}
        self.add(*sensitive)

    def add(self, *names: str) -> None:
        """Tags names of columns as sensitive. Case does not matter."""
        self._sensitive = self._sensitive | {name.casefold() for name in names}
        self._verdicts = {}

    def withholds(self, key: str) -> bool:
        """Whether values under `key` are withheld: the key, or a dotted part of it, is sensitive or a secret."""
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._judge(key)
            if len(self._verdicts) < _MAX_REMEMBERED:
                self._verdicts[key] = verdict
        return verdict

    def _judge(self, key: str) -> bool:
        folded = key.casefold()
        parts = folded.split(".")
        if any(
            ".".join(parts[i:j]) in self._sensitive for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)
        ):
            return True
        words = [word.lower() for word in _WORDS.findall(key)]
        return not SECRETS.isdisjoint(words) or ("api", "key") in itertools.pairwise(words)

    def clean(self, value: Any, depth: int = 0) -> Any:
        """`value` with everything under a sensitive key replaced, however deep in mappings and sequences."""
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
    """Whether the message of `error` may be shown: ours never quote values, and those of the system cannot."""
    return type(error).__module__.startswith(_SAFE_MODULES) or isinstance(error, _SAFE_TYPES)


def describe(error: BaseException) -> str:
    """Type and, where it cannot quote data, message of `error`."""
    name = type(error).__name__
    return f"{name}: {error}" if message_is_safe(error) else name


class SpanGuard:
    """Copies finished spans without anything that may carry a value: the last step before they leave."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._declared: dict[str, bool] = {}

    def allows(self, key: str) -> bool:
        """Whether an attribute of this name may be exported."""
        declared = self._declared.get(key)
        if declared is None:
            declared = key.startswith(ALLOWED_PREFIXES) and not key.startswith(_DROPPED)
            if len(self._declared) < _MAX_REMEMBERED:
                self._declared[key] = declared
        return declared and not self._redactor.withholds(key)

    def clean(self, span: ReadableSpan) -> ReadableSpan:
        """A copy of `span` with allowed attributes only, and without messages and stack traces of exceptions.

        The description of the status goes too: the SDK puts the text of the exception there.
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
        self, attributes: Mapping[str, AttributeValue] | None, besides: Sequence[str] = ()
    ) -> dict[str, AttributeValue]:
        """The attributes that are allowed, and those named `besides`."""
        if not attributes:
            return {}
        return {key: value for key, value in attributes.items() if key in besides or self.allows(key)}


class GuardedExporter(SpanExporter):
    """An exporter that sees only what the guard lets through. It runs on the exporting thread, off the request path."""

    def __init__(self, guard: SpanGuard, exporter: SpanExporter) -> None:
        self._guard = guard
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._exporter.export([self._guard.clean(span) for span in spans])

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)
