"""Refuses malformed requests, naming everything that is wrong with each."""

from collections.abc import Iterator

from treadle.core.errors import InvalidInput, Violation
from treadle.gateway.pipeline.batch.request import CONTEXT, ENTITIES, TENSORS, PredictionRequest, Schema
from treadle.gateway.policy.deployments import ServedDeployment

_SCHEMAS_KEPT = 1024


class RequestValidator:
    """Checks the form of requests. A schema that was found good for a deployment is not looked at again."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._good: dict[tuple[str, Schema], ServedDeployment] = {}

    def check(self, request: PredictionRequest, deployment: ServedDeployment) -> None:
        """InvalidInput, with a violation for everything that is wrong."""
        key = (deployment.name, request.schema)
        is_plain = self._is_plain(request)
        if is_plain and self._good.get(key) is deployment:
            return
        violations = list(_violations(request, deployment, self._max_rows))
        if violations:
            text = "; ".join(f"{violation.field} {violation.description}" for violation in violations[:5])
            raise InvalidInput(f"the request is malformed: {text}", violations)
        if is_plain:
            self._keep(key, deployment)

    def _is_plain(self, request: PredictionRequest) -> bool:
        """Whether nothing but the schema of a request can be wrong."""
        rows = request.rows
        if request.nulls or request.outputs or not 0 < rows <= self._max_rows:
            return False
        return all(len(values) == rows for values in request.values)

    def _keep(self, key: tuple[str, Schema], deployment: ServedDeployment) -> None:
        if len(self._good) >= _SCHEMAS_KEPT:
            self._good.clear()
        self._good[key] = deployment


def _violations(request: PredictionRequest, deployment: ServedDeployment, max_rows: int) -> Iterator[Violation]:
    parts = {header.part for header in request.schema}
    found = [*_form(request, parts), *_entities(request), *_unknown(request, deployment, parts)]
    yield from found
    if not found and request.rows == 0:
        yield Violation("tensors" if TENSORS in parts else "entities", "hold no rows; send at least one")
    if request.rows > max_rows:
        yield Violation("rows", f"{request.rows} rows are more than the {max_rows} of one request; split it")


def _form(request: PredictionRequest, parts: set[str]) -> Iterator[Violation]:
    if TENSORS in parts and len(parts) > 1:
        yield Violation("tensors", "exclude entities and context; send the one or the other")
    if not parts:
        yield Violation("entities", "are missing; send entities (with context), or tensors")
    seen: dict[str, str] = {}
    for header, values in zip(request.schema, request.values, strict=True):
        where = f"{header.part}[{header.name}]"
        if seen.get(header.name) == header.part:
            yield Violation(where, "is there twice")
        elif header.part == CONTEXT and header.name in seen:
            yield Violation(where, "is an entity as well; send it once")
        seen[header.name] = header.part
        if len(values) != request.rows:
            yield Violation(where, f"has {len(values)} rows where the first column has {request.rows}")
    if len(set(request.outputs)) != len(request.outputs):
        yield Violation("outputs", "name one output twice")


def _entities(request: PredictionRequest) -> Iterator[Violation]:
    for position, header in request.columns(ENTITIES):
        if header.row_shape:
            yield Violation(f"entities[{header.name}]", "must hold one key a row")
        nulls = request.nulls.get(position)
        if nulls is not None and nulls.any():
            row = int(nulls.argmax())
            yield Violation(f"entities[{header.name}]", f"is null in row {row}; every row needs its keys")


def _unknown(request: PredictionRequest, deployment: ServedDeployment, parts: set[str]) -> Iterator[Violation]:
    """A misspelt column would otherwise be ignored, and its feature silently missing."""
    known = deployment.known_columns
    if known is None or TENSORS in parts:
        return
    for part, name, _, _ in request.schema:
        if name not in known:
            there = ", ".join(sorted(known))
            yield Violation(f"{part}[{name}]", f"is used by nothing in {deployment.name!r}; it takes {there}")
