"""Structured logs on stderr: one JSON object a line (or coloured text), with trace ids and without sensitive values.

A logger is an object and no global configuration: `make_logger` creates one, and `capture_stdlib` routes the records of
libraries that use `logging` (grpc, uvicorn, sqlalchemy) to it.
"""

import logging
import sys
import traceback
from typing import Any, TextIO

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from treadle.observability.telemetry.redaction import REDACTED, Redactor, describe

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

_MIN_LEVELS = {"sqlalchemy": logging.WARNING, "alembic": logging.WARNING, "uvicorn.access": logging.WARNING}
"""The least level of libraries that log each request or statement at INFO: parameters of statements are values."""

_OWN_KEYS = ("event", "level", "logger", "service", "span_id", "timestamp", "trace_id")


_MAX_FRAMES = 30
_MAX_CHAIN = 8


def make_logger(
    service: str,
    redactor: Redactor,
    *,
    json: bool = True,
    level: str = "info",
    stream: TextIO | None = None,
) -> FilteringBoundLogger:
    """A structlog logger bound to `service`. ValueError for an unknown level."""
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(stream or sys.stderr),
        processors=_processors(redactor, json=json),
        wrapper_class=structlog.make_filtering_bound_logger(level_number(level)),
        cache_logger_on_first_use=True,
    )
    return logger.bind(service=service)


def level_number(level: str) -> int:
    """The number of a level: 10 for "debug" … 50 for "critical". ValueError for an unknown level."""
    try:
        return LEVELS[level.lower()]
    except KeyError:
        raise ValueError(f"log level {level!r}: want one of {', '.join(LEVELS)}") from None


def capture_stdlib(logger: FilteringBoundLogger, *, level: str = "info") -> None:
    """Sends the records of `logging` to `logger`; replaces the handler of an earlier call."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _ForwardHandler)]:
        root.removeHandler(handler)
    root.addHandler(_ForwardHandler(logger))
    root.setLevel(level_number(level))
    for name, least in _MIN_LEVELS.items():
        logging.getLogger(name).setLevel(max(least, level_number(level)))


class _ForwardHandler(logging.Handler):
    def __init__(self, logger: FilteringBoundLogger) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        level = min(max(record.levelno // 10 * 10, 10), 50)  # libraries define levels in between
        extra: dict[str, Any] = {"exc_info": record.exc_info} if record.exc_info else {}
        try:
            self._logger.log(level, record.getMessage(), logger=record.name, **extra)
        except Exception:
            self.handleError(record)


def _processors(redactor: Redactor, *, json: bool) -> list[Processor]:
    def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        for key, value in event.items():
            if key not in _OWN_KEYS:
                event[key] = REDACTED if redactor.withholds(key) else redactor.clean(value)
        return event

    renderer: Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False, default=_type_name)
        if json
        else structlog.dev.ConsoleRenderer(colors=True)
    )
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace,
        _format_exception,
        redact,
        renderer,
    ]


def _add_trace(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = f"{context.trace_id:032x}"
        event["span_id"] = f"{context.span_id:016x}"
    return event


def _format_exception(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replaces `exc_info` by `exception`: types, places, and messages that cannot quote a value."""
    given = event.pop("exc_info", None)
    if not given:
        return event
    error = given if isinstance(given, BaseException) else given[1] if isinstance(given, tuple) else sys.exc_info()[1]
    if error is not None:
        event["exception"] = format_error(error)
    return event


def format_error(error: BaseException) -> str:
    """The chain of an error as text, outermost first, each with its innermost frames as `file:line function`."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(parts) < _MAX_CHAIN:
        seen.add(id(current))
        frames = traceback.extract_tb(current.__traceback__)[-_MAX_FRAMES:]
        places = "".join(f"\n  {frame.filename}:{frame.lineno} {frame.name}" for frame in frames)
        parts.append(describe(current) + places)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\ncaused by ".join(parts)


def _type_name(value: object) -> str:
    """The type of a value that JSON cannot hold, because its repr may quote any value."""
    return f"<{type(value).__name__}>"
