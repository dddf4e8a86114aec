"""The definitions that a features service holds: applied all or none, kept on disk, compiled into plans.

Readers take `state`, an immutable snapshot that `apply` replaces in one step, so that a lookup never sees half a
change and never waits for one.
"""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format

from treadle.core.errors import Conflict, DataLoss, FailedPrecondition, NotFound, TreadleError
from treadle.core.files import map_disk_full, write_atomically
from treadle.core.hints import did_you_mean
from treadle.features import definition_codec as codec
from treadle.features.definition_diff import Change, change
from treadle.features.definitions import Definitions, FeatureService, FeatureView, Transform, marked
from treadle.features.lookup_plan import Plan, compile_plan
from treadle.features.names import full_name
from treadle.features.online.packing import Layout
from treadle.features.source import resolve
from treadle.v1 import features_pb2 as pb

_FORMAT: Final = 1
_NARROWED_PLANS: Final = 256
_APPLY_SECONDS: Final = 30.0


@dataclass(frozen=True)
class CatalogState:
    """Everything defined at one moment."""

    views: Mapping[str, FeatureView] = field(default_factory=dict)
    services: Mapping[str, FeatureService] = field(default_factory=dict)
    plans: Mapping[str, Plan | TreadleError] = field(default_factory=dict)
    """By service; an error where the service cannot be served as it is."""
    layouts: Mapping[str, tuple[Layout, ...]] = field(default_factory=dict)
    """By view: every layout it ever had; the one in use is that of its fields."""
    _narrowed: dict[tuple[str, tuple[str, ...]], Plan] = field(default_factory=dict, compare=False, repr=False)

    def view(self, name: str) -> FeatureView:
        """NotFound with near names."""
        found = self.views.get(name)
        if found is None:
            raise NotFound(f"no feature view {name!r:.80}{did_you_mean(name, self.views)}")
        return found

    def service(self, name: str) -> FeatureService:
        """NotFound with near names."""
        found = self.services.get(name)
        if found is None:
            raise NotFound(f"no feature service {name!r:.80}{did_you_mean(name, self.services)}")
        return found

    def plan(self, service: str, outputs: tuple[str, ...] = ()) -> Plan:
        """The plan of a service, for some outputs or all. NotFound, InvalidInput; FailedPrecondition when broken."""
        narrowed = self._narrowed.get((service, outputs))
        if narrowed is not None:
            return narrowed
        self.service(service)
        plan = self.plans[service]
        if isinstance(plan, TreadleError):
            raise type(plan)(plan.message)
        made = plan.narrowed(outputs) if outputs else plan
        if len(self._narrowed) < _NARROWED_PLANS:
            self._narrowed[service, outputs] = made
        return made

    def sensitive(self) -> frozenset[str]:
        """Names of the columns tagged sensitive: fields under their own and their full name, context, outputs."""
        tagged = {(view.name, field.name) for view in self.views.values() for field in view.fields if field.sensitivity}
        names = {name for view, field in tagged for name in (field, full_name(view, field))}
        for service in self.services.values():
            made = [field for transform in service.named_transforms for field in transform.outputs]
            names |= {field.name for field in (*service.context, *made) if field.sensitivity}
        return frozenset(names)

    def layout(self, view: FeatureView) -> Layout:
        """The layout for rows written now."""
        wanted = _fields_of(view)
        return next(each for each in self.layouts[view.name] if each.fields == wanted)


class Catalog:
    """Definitions in one file. Thread-safe."""

    def __init__(self, file: Path) -> None:
        """Reads the file if it is there. DataLoss when it cannot be understood."""
        self._file = file
        self._applying = threading.Lock()
        self.state = _load(file)

    def apply(self, definitions: Definitions, *, dry_run: bool = False) -> list[Change]:
        """Creates or changes what `definitions` names and leaves the rest, all or none. Errors: see ApplyFeatures."""
        if not self._applying.acquire(timeout=_APPLY_SECONDS):
            raise Conflict("other definitions are being applied; try again")
        try:
            before = self.state
            resolved = tuple(_resolved(each) for each in definitions.services)
            after = _next_state(before, definitions.views, resolved)
            changes = [change("view", each.name, before.views.get(each.name), each) for each in definitions.views]
            changes += [change("service", each.name, before.services.get(each.name), each) for each in resolved]
            if not dry_run:
                _save(self._file, after)
                self.state = after
            return changes
        finally:
            self._applying.release()


def _next_state(
    before: CatalogState, views: tuple[FeatureView, ...], services: tuple[FeatureService, ...]
) -> CatalogState:
    layouts = dict(before.layouts)
    for view in views:
        _check_stored_stays(before, view)
        layouts[view.name] = _with_layout(layouts.get(view.name, ()), view)
    all_views = {**before.views, **{each.name: each for each in views}}
    # A service that was not touched keeps the functions it was applied with.
    plans: dict[str, Plan | TreadleError] = {}
    for name, service in before.services.items():
        old = before.plans[name]
        plans[name] = old if isinstance(old, TreadleError) else compile_plan(service, all_views)
    plans.update({each.name: compile_plan(each, all_views) for each in services})
    all_services = {**before.services, **{each.name: each for each in services}}
    return CatalogState(all_views, all_services, plans, layouts)


def _check_stored_stays(before: CatalogState, view: FeatureView) -> None:
    """FailedPrecondition for a change that would alter the meaning of what is stored."""
    old = before.views.get(view.name)
    if old is None:
        return
    keys, old_keys = ([(each.name, each.dtype) for each in v.entities] for v in (view, old))
    if keys != old_keys:
        raise FailedPrecondition(
            f"the entities of view {view.name!r} cannot change: its rows are stored by them; make a new view"
        )
    types = dict(each for layout in before.layouts[view.name] for each in layout.fields)
    for each in view.fields:
        was = types.get(each.name, each.dtype)
        if was != each.dtype:
            raise FailedPrecondition(
                f"view {view.name!r}: field {each.name!r} is stored as {was} and cannot become {each.dtype}; "
                "make a new view or a field with a new name"
            )


def _with_layout(layouts: tuple[Layout, ...], view: FeatureView) -> tuple[Layout, ...]:
    wanted = Layout.of(_fields_of(view))
    if any(each.number == wanted.number for each in layouts):
        return layouts
    return (*layouts, wanted)


def _fields_of(view: FeatureView) -> tuple[tuple[str, str], ...]:
    return tuple((each.name, each.dtype) for each in view.fields)


def _resolved(service: FeatureService) -> FeatureService:
    """The service with its functions imported here. FailedPrecondition when one is absent or differs."""
    return replace(service, transforms=tuple(_resolved_transform(each) for each in service.named_transforms))


def _resolved_transform(transform: Transform) -> Transform:
    call, digest = resolve(transform.function)
    if marked(call) is None:  # else anything importable could be called by whoever may apply
        raise FailedPrecondition(f"transform {transform.name!r}: {transform.function!r} is not marked with @transform")
    if transform.source_digest and transform.source_digest != digest:
        raise FailedPrecondition(
            f"transform {transform.name!r}: the source of {transform.function!r} here differs from the source that was "
            "applied; give this process the same code, or apply again with the code that is here"
        )
    return replace(transform, source_digest=digest, call=call)


def _load(file: Path) -> CatalogState:
    if not file.exists():
        return CatalogState()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise DataLoss(f"{file} has the format {content['format']!r}, this release reads {_FORMAT}")
        message = json_format.ParseDict(content["definitions"], pb.ApplyFeaturesRequest())
        definitions = codec.from_request(message)
        layouts = {view: tuple(Layout.of(each) for each in history) for view, history in content["layouts"].items()}
    except DataLoss:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, json_format.ParseError, TreadleError) as error:
        raise DataLoss(f"{file} cannot be read as feature definitions: {error}; restore it from a copy") from error
    views = {each.name: each for each in definitions.views}
    plans: dict[str, Plan | TreadleError] = {}
    for service in definitions.services:
        try:
            plans[service.name] = compile_plan(_resolved(service), views)
        except TreadleError as error:
            plans[service.name] = FailedPrecondition(
                f"feature service {service.name!r} is out of service: {error.message}"
            )
    return CatalogState(views, {each.name: each for each in definitions.services}, plans, layouts)


def _save(file: Path, state: CatalogState) -> None:
    """Replaces the file in one step, after its bytes are on disk."""
    definitions = Definitions(tuple(state.views.values()), tuple(state.services.values()))
    content: dict[str, Any] = {
        "format": _FORMAT,
        "definitions": json_format.MessageToDict(codec.to_request(definitions)),
        "layouts": {view: [each.fields for each in history] for view, history in state.layouts.items()},
    }
    with map_disk_full("the disk is full; the definitions stay as they were"):
        write_atomically(file, json.dumps(content, indent=1).encode())
