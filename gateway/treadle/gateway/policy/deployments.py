"""What the gateway knows about deployments: an immutable picture, replaced whole when something changes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from treadle.core.column import Column
from treadle.core.errors import NotFound, Unavailable
from treadle.core.model_ref import ModelRef
from treadle.plugins.tensors import Signature


@dataclass(frozen=True, slots=True)
class ServedShare:
    """A version's part of the traffic, in percent."""

    ref: ModelRef
    weight: float


@dataclass(frozen=True, slots=True)
class ServedStep:
    """One step of a fallback chain: a version, or (`ref` is None) one constant row."""

    name: str
    ref: ModelRef | None
    constant: tuple[Column, ...] = ()
    timeout_seconds: float = 0.0
    """0: what is left of the request's time."""


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """What the gateway must know of a model version to call it."""

    ref: ModelRef
    signature: Signature
    feature_service: str
    """Empty for a model that needs no looked-up feature."""
    needs: tuple[str, ...] = field(init=False)
    """Names of the columns that the inputs are made from, in order, each once."""
    input_dtypes: Mapping[str, str] = field(init=False)
    """Of each input, its dtype."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_dtypes", {spec.name: spec.dtype for spec in self.signature.inputs})
        object.__setattr__(self, "needs", tuple(dict.fromkeys(self.signature.columns())))


@dataclass(frozen=True, slots=True)
class FeatureNeeds:
    """What a feature service takes and gives: column name -> dtype name."""

    name: str
    entities: Mapping[str, str]
    context: Mapping[str, str]
    sensitive: frozenset[str]
    """Outputs and context columns whose values may be recorded nowhere."""


DEFAULT_TIMEOUT_SECONDS = 5.0

_Parts = list[tuple[ServedVersion, FeatureNeeds | None]]


@dataclass(frozen=True, slots=True)
class ServedDeployment:
    """A traffic policy with all it refers to."""

    name: str
    traffic: tuple[ServedShare, ...]
    shadows: tuple[ModelRef, ...] = ()
    fallbacks: tuple[ServedStep, ...] = ()
    sticky_entity: str = ""
    timeout_seconds: float = 0.0
    """For a request whose caller sets no deadline; 0: 5 s."""
    feature_timeout_seconds: float = 0.0
    """0: half of the time of the step that asks for features."""
    strict: bool = False
    """A stale value counts as missing."""
    versions: Mapping[ModelRef, ServedVersion] = field(default_factory=dict)
    """Those whose manifest is known; a version that is not here can't be called."""
    feature_services: Mapping[str, FeatureNeeds] = field(default_factory=dict)
    """Those that have been described; the feature service may have been out of reach so far."""
    known_columns: frozenset[str] | None = field(init=False, default=None)
    """Every entity or context column that any version can use; None while some are not known."""
    sensitive_columns: frozenset[str] | None = field(init=False, default=None)
    """Columns that may not be recorded; None while that is not known: then none may be."""

    @property
    def refs(self) -> tuple[ModelRef, ...]:
        """Every version the policy names, each once: traffic, shadows, fallbacks."""
        steps = (step.ref for step in self.fallbacks if step.ref)
        return tuple(dict.fromkeys([*(share.ref for share in self.traffic), *self.shadows, *steps]))

    @property
    def request_timeout_seconds(self) -> float:
        """How long a request may take whose caller sets no deadline."""
        return self.timeout_seconds or DEFAULT_TIMEOUT_SECONDS

    @property
    def primary(self) -> ModelRef:
        """The version with the largest share; the newer one when equal."""
        return max(self.traffic, key=lambda share: (share.weight, share.ref)).ref

    def version(self, ref: ModelRef) -> ServedVersion:
        """Raises Unavailable while the version's manifest is not known here."""
        try:
            return self.versions[ref]
        except KeyError:
            raise Unavailable(
                f"model {ref} is not known to the gateway yet: the registry could not be asked since it was deployed"
            ) from None

    def __post_init__(self) -> None:
        parts = self._parts()
        if parts is not None:
            object.__setattr__(self, "known_columns", _known(self.sticky_entity, parts))
            object.__setattr__(self, "sensitive_columns", _sensitive(parts))

    def _parts(self) -> _Parts | None:
        """Each version with what its feature service needs, if it has one; None while some are not known."""
        parts: _Parts = []
        for ref in self.refs:
            version = self.versions.get(ref)
            if version is None:
                return None
            needs = self.feature_services.get(version.feature_service)
            if needs is None and version.feature_service:
                return None
            parts.append((version, needs))
        return parts


def _known(sticky_entity: str, parts: _Parts) -> frozenset[str]:
    known = {sticky_entity} if sticky_entity else set()
    for version, needs in parts:
        known.update(version.needs)
        if needs is not None:
            known.update(needs.entities, needs.context)
    return frozenset(known)


def _sensitive(parts: _Parts) -> frozenset[str]:
    return frozenset().union(*(needs.sensitive for _, needs in parts if needs is not None))


@dataclass(frozen=True, slots=True)
class PolicySnapshot:
    """All deployments at one moment."""

    deployments: Mapping[str, ServedDeployment] = field(default_factory=dict)

    def deployment(self, name: str) -> ServedDeployment:
        """Raises NotFound with the names there are, when they are few."""
        try:
            return self.deployments[name]
        except KeyError:
            raise NotFound(f"no deployment {name!r}{self._hint()}") from None

    def _hint(self) -> str:
        names = sorted(self.deployments)
        if not names:
            return "; there is none yet: make one with `treadle deploy`"
        return f"; there are {', '.join(names[:10])}{' …' if len(names) > 10 else ''}"
