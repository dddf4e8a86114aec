"""Envoy's configuration, as the dict that its JSON is made of. `treadle serve --print-envoy-config` shows it."""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treadle.core.errors import FailedPrecondition
from treadle.rpc.client.channel import Tls
from treadle.rpc.hosts.envoy.call import ARRIVAL_HEADER
from treadle.rpc.hosts.listen import Listen

Json = dict[str, Any]
_TYPES = "type.googleapis.com/envoy.extensions"
# One stream may wait with this much unread; the whole connection with so much.
_STREAM_WINDOW, _CONNECTION_WINDOW = 1 << 20, 16 << 20
_MOST_CONNECTIONS = 10_000
_MOST_STREAMS = 10_000


@dataclass(frozen=True)
class EnvoySettings:
    """What one Envoy process is configured by."""

    app: str
    """The ASGI application, "module:attribute"."""
    listens: Sequence[Listen]
    """One for each service of the process; TLS and limits are those of the first."""
    http: Sequence[str] = ()
    """host:port of REST doors."""
    admin: Path | None = None
    """Socket of Envoy's admin interface, reached by this process alone."""


def envoy_config(settings: EnvoySettings) -> Json:
    """The whole configuration."""
    config: Json = {
        "static_resources": {"listeners": [_listener(settings)]},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{_TYPES}.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": _MOST_CONNECTIONS,
                    },
                }
            ]
        },
    }
    if settings.admin is not None:
        config["admin"] = {"address": {"pipe": {"path": str(settings.admin), "mode": 0o600}}}
    return config


def _listener(settings: EnvoySettings) -> Json:
    first = settings.listens[0]
    addresses = [_address(each.address) for each in settings.listens] + [_address(each) for each in settings.http]
    chain: Json = {"filters": [_connections(settings)]}
    if first.tls is not None:
        chain["transport_socket"] = _tls(first.tls)
    return {
        "name": "treadle",
        "address": addresses[0],
        "additional_addresses": [{"address": each} for each in addresses[1:]],
        "enable_reuse_port": first.share_port,
        # A message is taken in whole before Python reads it, so one of the greatest size must have room.
        "per_connection_buffer_limit_bytes": first.max_message_bytes + _CONNECTION_WINDOW,
        "filter_chains": [chain],
    }


def _address(text: str) -> Json:
    if text.startswith("unix:"):
        return {"pipe": {"path": text.removeprefix("unix:")}}
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise FailedPrecondition(f"cannot listen on {text!r}: write host:port")
    host = host.strip("[]")
    return {"socket_address": {"address": "127.0.0.1" if host == "localhost" else host, "port_value": int(port)}}


def _connections(settings: EnvoySettings) -> Json:
    config: Json = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "treadle",
        "codec_type": "AUTO",
        "route_config": {"virtual_hosts": [{"name": "treadle", "domains": ["*"], "routes": []}]},
        "early_header_mutation_extensions": [_arrival_header()],
        "http_filters": [_python(settings.app)],
        "generate_request_id": False,
        "server_header_transformation": "PASS_THROUGH",
        "skip_xff_append": True,
        "stream_idle_timeout": "0s",  # a watch may be silent for days
        "http2_protocol_options": {
            "max_concurrent_streams": _MOST_STREAMS,
            "initial_stream_window_size": _STREAM_WINDOW,
            "initial_connection_window_size": _CONNECTION_WINDOW,
        },
    }
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": config}


def _arrival_header() -> Json:
    """Tells Python when a request arrived: what waits for the event loop belongs to the time of its span."""
    name = "early_header_mutation.header_mutation"
    header = {"key": ARRIVAL_HEADER, "value": "%START_TIME(%s%9f)%"}
    return {
        "name": f"envoy.http.{name}",
        "typed_config": {
            "@type": f"{_TYPES}.http.{name}.v3.HeaderMutation",
            "mutations": [{"append": {"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}],
        },
    }


def _python(app: str) -> Json:
    """The filter that answers everything: pyvoy."""
    return {
        "name": "pyvoy",
        "typed_config": {
            "@type": f"{_TYPES}.filters.http.dynamic_modules.v3.DynamicModuleFilter",
            "dynamic_module_config": {"module": {"local": {"filename": _module()}}},
            "filter_name": "pyvoy",
            "terminal_filter": True,
            "filter_config": {
                "@type": "type.googleapis.com/google.protobuf.StringValue",
                "value": json.dumps({"app": app, "interface": "asgi", "root_path": "", "lifespan": True}),
            },
        },
    }


def _module() -> str:
    spec = importlib.util.find_spec("pyvoy._pyvoy")
    if spec is None or spec.origin is None:
        raise FailedPrecondition("the envoy host cannot run here: pyvoy's module is missing; install pyvoy again")
    return spec.origin


def _tls(tls: Tls) -> Json:
    common: Json = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificates": [{"certificate_chain": _file(tls.cert), "private_key": _file(tls.key)}],
    }
    if tls.ca is not None:
        common["validation_context"] = {"trusted_ca": _file(tls.ca)}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{_TYPES}.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": common,
            "require_client_certificate": tls.ca is not None,
        },
    }


def _file(path: Path | None) -> Json:
    return {"filename": str(path)}
