"""The settings of a process of the mesh, read from the environment: where it listens, its data, TLS, telemetry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

from treadle.core.errors import FailedPrecondition
from treadle.core.settings import HOST_PORT, HTTP_URL, LISTEN_ADDRESS, Settings, bounds, one_of
from treadle.observability.telemetry.sampling import (
    TRACES_PER_SECOND,
    AdaptiveSampler,
    RatioSampler,
    RequestSampler,
    TraceBudget,
)
from treadle.rpc.client.channel import Tls
from treadle.rpc.hosts.listen import Listen


@dataclass(frozen=True)
class ProcessSettings(Settings):
    """What every process of the mesh is told: TREADLE_LISTEN, TREADLE_HOME, …"""

    listen: Annotated[str, LISTEN_ADDRESS] = "127.0.0.1:0"
    """host:port for gRPC."""
    metrics_listen: Annotated[str | None, HOST_PORT] = None
    """host:port of the Prometheus endpoint; none when empty."""
    home: Path = Path(".treadle")
    """Where data lies; each service has a folder of its own in it."""
    project: Path | None = None
    """Folder of modules that users wrote (transforms, rules); put on the import path."""
    otlp_endpoint: Annotated[str | None, HTTP_URL] = None
    """Where spans go, such as http://127.0.0.1:7705; nowhere when empty."""
    traces_per_second: Annotated[int, bounds(0, 1_000_000)] = TRACES_PER_SECOND
    """Most traces that this process records a second, in bursts of as many at most. Requests that fail, are refused or
    are degraded leave a span besides."""
    trace_ratio: Annotated[float | None, bounds(0, 1)] = None
    """Forces this share of the traces that begin here in place of the bound; callers decide for theirs."""
    log_level: Annotated[str, one_of("debug", "info", "warning", "error", "critical")] = "info"
    """The lowest level that is logged."""
    log_json: bool = True
    """One JSON object a line; otherwise lines for people."""
    tls_cert: Path | None = None
    """The certificate of this process (PEM), shown to callers and to peers; plaintext without."""
    tls_key: Path | None = None
    """Its private key (PEM)."""
    tls_ca: Path | None = None
    """With it, peers must show certificates that it signed, and so does this process when it calls them."""
    allow_plaintext: bool = False
    """Whether to listen beyond loopback without TLS: only for a network that is private by other means."""
    max_message_mib: Annotated[int, bounds(1, 2_047)] = 64
    """Largest gRPC message that is accepted."""
    drain_seconds: Annotated[float, bounds(0, 3_600)] = 10.0
    """How long calls in flight may take after SIGTERM."""
    reflection: bool = True
    """Whether tools such as grpcurl may list the services."""
    share_port: bool = False
    """Whether other processes of the same service listen on the same port."""

    @property
    def tls(self) -> Tls | None:
        """Certificates, or None for plaintext."""
        if self.tls_cert is None and self.tls_key is None and self.tls_ca is None:
            return None
        if self.tls_cert is None or self.tls_key is None:
            raise FailedPrecondition("TLS needs both TREADLE_TLS_CERT and TREADLE_TLS_KEY")
        return Tls(self.tls_cert, self.tls_key, self.tls_ca)

    def request_sampler(self) -> RequestSampler:
        """The sampler of all services of the process."""
        if self.trace_ratio is not None:
            return RatioSampler(self.trace_ratio)
        return AdaptiveSampler(TraceBudget(self.traces_per_second))

    def to_listen(self) -> Listen:
        """What the host is told."""
        return Listen(
            self.listen, self.tls, self.allow_plaintext, self.max_message_mib << 20, self.reflection, self.share_port
        )

    def of(self, service: str, environ: Mapping[str, str]) -> Self:
        """Those of a further service in the same process: TREADLE_LISTEN_FEATURES, TREADLE_METRICS_LISTEN_FEATURES."""
        return replace(
            self,
            listen=environ.get(f"TREADLE_LISTEN_{service.upper()}", "127.0.0.1:0"),
            metrics_listen=environ.get(f"TREADLE_METRICS_LISTEN_{service.upper()}") or None,
        )

    def of_each(self, services: Sequence[str], environ: Mapping[str, str]) -> list[Self]:
        """One for each service of the process; the first service's are the process's own."""
        return [self, *(self.of(name, environ) for name in services[1:])]
