"""What a healthy mesh emits, as data: who calls whom, and which service gives which signal.

Tests hold the recorded spans of a real run against it. A new service or hop is one more line here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from treadle.observability.tracestore.spans import SpanRecord


@dataclass(frozen=True, slots=True)
class Edge:
    """A call between services: in a trace, a span of `callee` directly below a span of `caller`."""

    caller: str
    callee: str
    method: str
    """End of the callee's span name; "" for any."""
    why: str


REQUEST_EDGES: tuple[Edge, ...] = (
    Edge("gateway", "features", "FeatureService/GetOnlineFeatures", "a prediction by entity key needs its features"),
    Edge("gateway", "inference", "GRPCInferenceService/ModelInfer", "a prediction needs a model"),
)
"""What the trace of one prediction by entity key shows."""

EVALUATION_EDGES: tuple[Edge, ...] = (
    Edge("gateway", "evaluation", "EvaluationService/Evaluate", "the gateway is the one door"),
    Edge("evaluation", "registry", "RegistryService/GetModelVersion", "what a version is stands in the registry"),
    Edge("evaluation", "features", "FeatureService/ListFeatureServices", "sensitive columns are no slices"),
    Edge("evaluation", "inference", "GRPCInferenceService/ModelInfer", "a version is evaluated where it would serve"),
    Edge("evaluation", "registry", "RegistryService/AddReport", "a report is stored with its version"),
)
"""What the trace of one evaluation shows."""

BACKGROUND_EDGES: tuple[Edge, ...] = (
    Edge("gateway", "evaluation", "EvaluationService/RecordPredictions", "predictions are remembered, off the path"),
    Edge("gateway", "registry", "RegistryService/WatchDeployments", "the gateway follows traffic policies"),
    Edge("gateway", "registry", "RegistryService/GetModelVersion", "the gateway knows what its versions take"),
    Edge("gateway", "features", "FeatureService/ListFeatureServices", "the gateway knows what its versions need"),
    Edge("inference", "registry", "RegistryService/WatchDeployments", "what is deployed is loaded"),
    Edge("inference", "registry", "RegistryService/GetModelVersion", "models are loaded as they are registered"),
    Edge("inference", "registry", "RegistryService/DownloadArtifact", "models are loaded from the registry"),
)
"""What begins traces of its own."""

SERVICE_EDGES = REQUEST_EDGES + EVALUATION_EDGES + BACKGROUND_EDGES
"""All of them. Besides, the gateway passes any call of a client on to the service that it is for."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What one service gives."""

    traces: bool
    metrics: bool
    logs: bool


SIGNAL_MATRIX: dict[str, Signals] = {
    "gateway": Signals(traces=True, metrics=True, logs=True),
    "features": Signals(traces=True, metrics=True, logs=True),
    "inference": Signals(traces=True, metrics=True, logs=True),
    "evaluation": Signals(traces=True, metrics=True, logs=True),
    "registry": Signals(traces=True, metrics=True, logs=True),
    "traces": Signals(traces=False, metrics=True, logs=True),  # it would trace its own intake for ever
}


def edges_in(spans: Iterable[SpanRecord]) -> set[tuple[str, str]]:
    """Caller and callee of every parent and child span that belong to different services."""
    pairs = _parents_and_children(spans)
    return {(parent.service, child.service) for parent, child in pairs if parent.service != child.service}


def missing_edges(spans: Iterable[SpanRecord], wanted: Iterable[Edge]) -> list[Edge]:
    """The wanted edges that no pair of spans shows: a hop that lost its trace context, or was never made."""
    shown = {(parent.service, child.service, child.name) for parent, child in _parents_and_children(spans)}
    return [
        edge
        for edge in wanted
        if not any(
            (caller, callee) == (edge.caller, edge.callee) and name.endswith(edge.method)
            for caller, callee, name in shown
        )
    ]


def _parents_and_children(spans: Iterable[SpanRecord]) -> list[tuple[SpanRecord, SpanRecord]]:
    """Every span whose parent is there too, behind it."""
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    parents = ((by_id.get((span.trace_id, span.parent_id)), span) for span in by_id.values())
    return [(parent, child) for parent, child in parents if parent is not None]


def undeclared_edges(spans: Iterable[SpanRecord], known: Iterable[Edge]) -> set[tuple[str, str]]:
    """Pairs of services that call each other though no edge says so."""
    return edges_in(spans) - {(edge.caller, edge.callee) for edge in known}


def missing_signals(traced: Iterable[str]) -> set[str]:
    """Services that should give traces and are not among `traced`."""
    return {service for service, signals in SIGNAL_MATRIX.items() if signals.traces} - set(traced)
