"""Envoy's configuration for request spans, which it records itself, at a fraction of what they cost in Python.

Whether a request is recorded is decided by the route that it takes, so Envoy's choice of a route and what it tells
Python cannot differ: a recorded request reaches Python with `SPAN_HEADER`, any other without. Requests of a trace
follow their caller's flag, others are recorded with a probability. Health checks, reflection and what is no gRPC take
a route without spans. What Python tells of a request travels back as `attribute_header`s.
"""

import ipaddress
import re
import ssl
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from treadle.core.errors import FailedPrecondition
from treadle.observability.telemetry.span_attributes import REQUEST_ATTRIBUTES
from treadle.observability.tracestore.envoy_spans import MARK

Json = dict[str, Any]
SPAN_HEADER: Final = "treadle-span"
"""Envoy's span of a recorded request, "00-<trace>-<span>-01". What callers send under this name is dropped.

Where the caller's own span makes no sense, Envoy records nothing and this is shorter: see `context_of`.
"""
FLUSH_SECONDS: Final = 0.5
"""Spans leave after this long at most. A process that ends waits as long, or it loses those of its last requests."""

_TYPES = "type.googleapis.com/envoy"
_MUTATION = f"{_TYPES}.extensions.filters.http.header_mutation.v3.HeaderMutation"
_FILTER = "treadle.span"
_CLUSTER = "treadle-otlp"
_UNTRACED = ("/grpc.", "/opentelemetry.", "/treadle.v1.TraceQueryService/")
# As strict as `parse_traceparent`. Of a header that comes twice, the tracer takes the first and a matcher any.
_RECORDED_CALLER = "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f][13579bdf]"
_OTHER_CALLER = ".*[02468ace]"
_WHOLE = 55
_CONTEXT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# Envoy samples nothing without a request id, and samples by it. Here the route decides, so any id will do.
_REQUEST_ID = "00000000-0000-4000-8000-000000000000"
_SPANS_PER_EXPORT = 512
_EXPORTS_UNDER_WAY = 16
_REGEX_SIZE = 10_000  # ours are longer than Envoy takes unasked
_MILLION = 1_000_000


@dataclass(frozen=True)
class Tracing:
    """Pieces of Envoy's configuration."""

    hcm: Json
    """`tracing` of the HTTP connection manager."""
    early: list[Json]
    """Its `early_header_mutation_extensions`."""
    routes: list[Json]
    """All routes of its virtual host."""
    filters: list[Json]
    """HTTP filters before the one that answers."""
    cluster: Json
    """The collector, for `static_resources.clusters`."""
    runtime: Json
    """A static layer of `layered_runtime`."""


def tracing(
    service: str,
    endpoint: str,
    ratio: float,
    *,
    streams: Collection[str] = (),
    resource: Mapping[str, str] | None = None,
    ca: str = "",
) -> Tracing:
    """Spans of `service` ("inference"), sent to the OTLP collector at `endpoint` ("http://127.0.0.1:7705") over gRPC.

    A share `ratio` (0…1) of requests that belong to no trace yet is recorded. `streams` are paths of methods that
    answer with a stream: their duration tells nothing about slowness, and their spans say so. `resource` goes on every
    span's resource. With https, `ca` is the file of certificates to trust, the system's own without.
    FailedPrecondition for a bad endpoint or ratio.
    """
    if not 0 <= ratio <= 1:
        raise FailedPrecondition(f"the share of requests to trace is {ratio}; it must be within 0 and 1")
    return Tracing(
        hcm=_tracing(service, resource or {}),
        early=_early({"remove": SPAN_HEADER}, _set("x-request-id", _REQUEST_ID)),
        routes=_routes(ratio, streams),
        filters=[_filter({"request_mutations": [{"remove": "x-request-id"}]})],
        cluster=_cluster(endpoint, ca),
        runtime={
            "tracing.opentelemetry.flush_interval_ms": int(FLUSH_SECONDS * 1000),
            "tracing.opentelemetry.min_flush_spans": _SPANS_PER_EXPORT,
            "re2.max_program_size.error_level": _REGEX_SIZE,
        },
    )


def without_forged_spans() -> list[Json]:
    """`early_header_mutation_extensions` for a process without tracing: what claims to be Envoy's word is dropped."""
    return _early({"remove": SPAN_HEADER})


def attribute_header(attribute: str) -> str:
    """The response header, or trailer, by which Python sets an attribute of the span: "treadle-attr-batch-id"."""
    return "treadle-attr-" + attribute.removeprefix("treadle.").replace(".", "-").replace("_", "-")


def context_of(span: str, traceparent: str, bits: Callable[[int], int]) -> str:
    """The trace context, "00-<trace>-<span>-<flags>", of a request with this `SPAN_HEADER` and this `traceparent`.

    It is `span` itself if, and only if, the request is recorded. Otherwise it is the caller's with the flag taken off,
    or a new one of random `bits`: what is called from here must know that nothing of this request is recorded.
    """
    if len(span) == _WHOLE:
        return span
    if traceparent and _CONTEXT.fullmatch(traceparent):
        return f"{traceparent[:53]}00"
    return f"00-{bits(128):032x}-{bits(64):016x}-00"


def _tracing(service: str, resource: Mapping[str, str]) -> Json:
    detector = "resource_detectors.static_config"
    return {
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": f"{_TYPES}.config.trace.v3.OpenTelemetryConfig",
                "grpc_service": {"envoy_grpc": {"cluster_name": _CLUSTER}, "timeout": "5s"},
                "service_name": f"treadle-{service}",
                "set_telemetry_sdk_resource_attributes": False,
                "max_cache_size": 4 * _SPANS_PER_EXPORT,
                "resource_detectors": [
                    {
                        "name": f"envoy.tracers.opentelemetry.{detector}",
                        "typed_config": {
                            "@type": f"{_TYPES}.extensions.tracers.opentelemetry.resource_detectors.v3."
                            "StaticConfigResourceDetectorConfig",
                            "attributes": {**resource, MARK[0]: MARK[1]},
                        },
                    }
                ],
            },
        },
        "operation": "%PATH(NQ)%",
        "custom_tags": [
            {"tag": "rpc.system.name", "literal": {"value": "grpc"}},
            {"tag": "rpc.method", "value": "%PATH(NQ)%"},
            {"tag": "rpc.status_code", "value": "%GRPC_STATUS(SNAKE_STRING)%"},
            *({"tag": name, "value": _said_by_python(attribute_header(name))} for name in REQUEST_ATTRIBUTES),
        ],
        "max_path_tag_length": 1,  # a path may hold what is nobody's business
    }


def _said_by_python(header: str) -> str:
    """Trailers come last, so they know best; an answer that is nothing but trailers has them as headers."""
    either = f'{{"command":"TRAILER","param":"{header}"}},{{"command":"RESP","param":"{header}"}}'
    return f'%COALESCE({{"operators":[{either}]}})%'


def _routes(ratio: float, streams: Collection[str]) -> list[Json]:
    """The first that matches is taken."""
    recorded_caller = [
        {"name": "traceparent", "string_match": {"safe_regex": {"regex": _RECORDED_CALLER}}},
        {"name": "traceparent", "string_match": {"safe_regex": {"regex": _OTHER_CALLER}}, "invert_match": True},
    ]
    any_caller = {"name": "traceparent", "present_match": True}
    share = {"numerator": max(1, round(ratio * _MILLION)), "denominator": "MILLION"}
    return [
        *(_unrecorded({"prefix": prefix}) for prefix in _UNTRACED),
        *_recorded({"headers": recorded_caller}, streams),
        _unrecorded({"prefix": "/", "headers": [any_caller]}),
        *(_recorded({"runtime_fraction": {"default_value": share}}, streams) if ratio else ()),
        _unrecorded({"prefix": "/"}),
    ]


def _recorded(match: Json, streams: Collection[str]) -> list[Json]:
    whole = {"numerator": 100}
    sampling = {"random_sampling": whole, "overall_sampling": whole}
    told = {
        _FILTER: {
            "@type": f"{_MUTATION}PerRoute",
            "mutations": {"request_mutations": [_set(SPAN_HEADER, "00-%TRACE_ID%-%SPAN_ID%-01")]},
        }
    }
    route = {"non_forwarding_action": {}, "typed_per_filter_config": told}
    methods = {**match, "prefix": "/", "grpc": {}}
    plain = {**route, "match": methods, "tracing": sampling}
    if not streams:
        return [plain]
    regex = "|".join(re.escape(path) for path in sorted(streams))
    streaming = {**match, "safe_regex": {"regex": regex}, "grpc": {}}
    tags = [{"tag": "treadle.stream", "literal": {"value": "true"}}]
    return [{**route, "match": streaming, "tracing": {**sampling, "custom_tags": tags}}, plain]


def _unrecorded(match: Json) -> Json:
    none = {"numerator": 0}
    sampling = {"client_sampling": none, "random_sampling": none, "overall_sampling": none}
    return {"match": match, "non_forwarding_action": {}, "tracing": sampling}


def _early(*mutations: Json) -> list[Json]:
    """Changes to the headers of requests before anything else looks at them."""
    name = "early_header_mutation.header_mutation"
    kind = f"{_TYPES}.extensions.http.{name}.v3.HeaderMutation"
    return [{"name": f"envoy.http.{name}", "typed_config": {"@type": kind, "mutations": list(mutations)}}]


def _filter(mutations: Json) -> Json:
    return {"name": _FILTER, "typed_config": {"@type": _MUTATION, "mutations": mutations}}


def _set(header: str, value: str) -> Json:
    return {"append": {"header": {"key": header, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}


def _cluster(endpoint: str, ca: str) -> Json:
    host, port, secure = _target(endpoint)
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    address = {"socket_address": {"address": host, "port_value": port}}
    cluster: Json = {
        "name": _CLUSTER,
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": _CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        # A collector that does not keep up loses spans; it must not fill the memory of those who send them.
        "circuit_breakers": {
            "thresholds": [{"max_requests": _EXPORTS_UNDER_WAY, "max_pending_requests": _EXPORTS_UNDER_WAY}]
        },
        "typed_extension_protocol_options": {
            options: {
                "@type": f"type.googleapis.com/{options}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }
    if secure:
        cluster["transport_socket"] = _tls(host, ca)
    return cluster


def _tls(host: str, ca: str) -> Json:
    paths = ssl.get_default_verify_paths()
    validation: Json = {"trusted_ca": {"filename": ca or paths.cafile or paths.openssl_cafile}}
    names: Json = {"sni": host, "auto_sni_san_validation": True}
    if _is_ip(host):  # which is no name to ask for
        names = {}
        validation["match_typed_subject_alt_names"] = [{"san_type": "IP_ADDRESS", "matcher": {"exact": host}}]
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{_TYPES}.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            **names,
            "common_tls_context": {"alpn_protocols": ["h2"], "validation_context": validation},
        },
    }


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _target(endpoint: str) -> tuple[str, int, bool]:
    """Host, port, and whether it wants TLS, of `http://host:port`, `https://host:port` or `host:port`."""
    parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("", "http", "https", "grpc") or not parts.hostname or not port:
        raise FailedPrecondition(f"OTLP endpoint {endpoint!r}: want http://host:port or https://host:port")
    return parts.hostname, port, parts.scheme == "https"
