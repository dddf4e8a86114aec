"""The telemetry of a healthy mesh, as data: the calls between services, and the signals of each service.

Tests compare the recorded spans of a real run with it. A new service or call is one more line here.
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
    """The end of the callee's span name; "" for any name."""
    why: str


REQUEST_EDGES: tuple[Edge, ...] = (
    Edge("gateway", "features", "FeatureService/GetOnlineFeatures", "a prediction by entity key needs its features"),
    Edge("gateway", "inference", "GRPCInferenceService/ModelInfer", "a prediction needs a model"),
)
"""Calls in the trace of a prediction by entity key."""

EVALUATION_EDGES: tuple[Edge, ...] = (
    Edge("gateway", "evaluation", "EvaluationService/Evaluate", "the gateway is the only entry point"),
    Edge("evaluation", "registry", "RegistryService/GetModelVersion", "the registry describes a version"),
    Edge("evaluation", "features", "FeatureService/ListFeatureServices", "sensitive columns must not be sliced by"),
    Edge("evaluation", "inference", "GRPCInferenceService/ModelInfer", "a version is evaluated where it would serve"),
    Edge("evaluation", "registry", "RegistryService/AddReport", "a report is stored with its version"),
)
"""Calls in the trace of an evaluation."""

BACKGROUND_EDGES: tuple[Edge, ...] = (
    Edge(
        "gateway", "evaluation", "EvaluationService/RecordPredictions", "predictions are recorded off the request path"
    ),
    Edge("gateway", "registry", "RegistryService/WatchDeployments", "the gateway follows traffic policies"),
    Edge("gateway", "registry", "RegistryService/GetModelVersion", "the gateway needs the signatures of its versions"),
    Edge("gateway", "features", "FeatureService/ListFeatureServices", "the gateway needs the features of its versions"),
    Edge("inference", "registry", "RegistryService/WatchDeployments", "deployed versions are loaded"),
    Edge("inference", "registry", "RegistryService/GetModelVersion", "models are loaded as they are registered"),
    Edge("inference", "registry", "RegistryService/DownloadArtifact", "models are loaded from the registry"),
)
"""Calls in traces of their own, outside of requests."""

SERVICE_EDGES = REQUEST_EDGES + EVALUATION_EDGES + BACKGROUND_EDGES
"""All declared calls. Also, the gateway forwards calls of clients to any service; those to the trace store, which read
spans, leave none."""


@dataclass(frozen=True, slots=True)
class ServiceSignals:
    """The signals that a service emits."""

    traces: bool
    metrics: bool
    logs: bool


SIGNAL_MATRIX: dict[str, ServiceSignals] = {
    "gateway": ServiceSignals(traces=True, metrics=True, logs=True),
    "features": ServiceSignals(traces=True, metrics=True, logs=True),
    "inference": ServiceSignals(traces=True, metrics=True, logs=True),
    "evaluation": ServiceSignals(traces=True, metrics=True, logs=True),
    "registry": ServiceSignals(traces=True, metrics=True, logs=True),
    "traces": ServiceSignals(
        traces=False, metrics=True, logs=True
    ),  # it would trace the export of its own traces for ever
}


def edges_in(spans: Iterable[SpanRecord]) -> set[tuple[str, str]]:
    """Caller and callee of every pair of parent and child spans of different services."""
    pairs = _parents_and_children(spans)
    return {(parent.service, child.service) for parent, child in pairs if parent.service != child.service}


def missing_edges(spans: Iterable[SpanRecord], wanted: Iterable[Edge]) -> list[Edge]:
    """The wanted edges without a pair of spans: the call lost its trace context, or was never made."""
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
    """Pairs of a parent span and a child span."""
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    parents = ((by_id.get((span.trace_id, span.parent_id)), span) for span in by_id.values())
    return [(parent, child) for parent, child in parents if parent is not None]


def undeclared_edges(spans: Iterable[SpanRecord], known: Iterable[Edge]) -> set[tuple[str, str]]:
    """Pairs of caller and callee without a declared edge."""
    return edges_in(spans) - {(edge.caller, edge.callee) for edge in known}


def missing_signals(traced: Iterable[str]) -> set[str]:
    """Services that should emit traces and are not in `traced`."""
    return {service for service, signals in SIGNAL_MATRIX.items() if signals.traces} - set(traced)
