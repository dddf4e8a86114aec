"""The definitions of a features service: applied atomically, persisted in one file, compiled into lookup plans.

Readers use the immutable `snapshot`, which `apply` replaces in one assignment: a lookup never sees half a change and
never waits for one.
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
from treadle.features.definition_diff import DefinitionChange, diff
from treadle.features.definitions import Definitions, FeatureService, FeatureView, Transform, is_transform
from treadle.features.lookup_plan import LookupPlan, compile_plan
from treadle.features.names import full_name
from treadle.features.online.packing import RowLayout
from treadle.features.source import import_function
from treadle.v1 import features_pb2 as pb

_FORMAT: Final = 1
_MAX_NARROWED_PLANS: Final = 256
_APPLY_TIMEOUT_SECONDS: Final = 30.0


@dataclass(frozen=True)
class DefinitionSnapshot:
    """All views, feature services and their compiled plans at one moment."""

    views: Mapping[str, FeatureView] = field(default_factory=dict)
    services: Mapping[str, FeatureService] = field(default_factory=dict)
    plans: Mapping[str, LookupPlan | TreadleError] = field(default_factory=dict)
    """By feature service; an error for a service whose transforms cannot be imported or whose plan is invalid."""
    layouts: Mapping[str, tuple[RowLayout, ...]] = field(default_factory=dict)
    """By view: every row layout that it ever had; rows are written in the layout of its present fields."""
    _narrowed_plans: dict[tuple[str, tuple[str, ...]], LookupPlan] = field(
        default_factory=dict, compare=False, repr=False
    )

    def view(self, name: str) -> FeatureView:
        """NotFound, with similar names, when the name is not defined."""
        found = self.views.get(name)
        if found is None:
            raise NotFound(f"no feature view {name!r:.80}{did_you_mean(name, self.views)}")
        return found

    def service(self, name: str) -> FeatureService:
        """NotFound, with similar names, when the name is not defined."""
        found = self.services.get(name)
        if found is None:
            raise NotFound(f"no feature service {name!r:.80}{did_you_mean(name, self.services)}")
        return found

    def plan(self, service: str, outputs: tuple[str, ...] = ()) -> LookupPlan:
        """The plan of a feature service for some of its outputs (empty: all).

        NotFound for the service, InvalidInput for an output; FailedPrecondition when the service cannot be served.
        """
        narrowed = self._narrowed_plans.get((service, outputs))
        if narrowed is not None:
            return narrowed
        self.service(service)
        plan = self.plans[service]
        if isinstance(plan, TreadleError):
            raise type(plan)(plan.message)
        made = plan.narrowed(outputs) if outputs else plan
        if len(self._narrowed_plans) < _MAX_NARROWED_PLANS:
            self._narrowed_plans[service, outputs] = made
        return made

    def sensitive_columns(self) -> frozenset[str]:
        """Names of the columns tagged sensitive: fields (short, full name), context columns, transform outputs."""
        tagged = {(view.name, field.name) for view in self.views.values() for field in view.fields if field.sensitivity}
        names = {name for view, field in tagged for name in (field, full_name(view, field))}
        for service in self.services.values():
            made = [field for transform in service.named_transforms for field in transform.outputs]
            names |= {field.name for field in (*service.context, *made) if field.sensitivity}
        return frozenset(names)

    def write_layout(self, view: FeatureView) -> RowLayout:
        """The layout in which new rows of the view are written."""
        wanted = _field_types(view)
        return next(each for each in self.layouts[view.name] if each.fields == wanted)


class DefinitionStore:
    """Definitions, persisted in one JSON file. Thread-safe."""

    def __init__(self, file: Path) -> None:
        """Reads the file if it exists. DataLoss when it cannot be parsed."""
        self._file = file
        self._apply_lock = threading.Lock()
        self.snapshot = _load(file)

    def apply(self, definitions: Definitions, *, dry_run: bool = False) -> list[DefinitionChange]:
        """Creates or changes the objects of `definitions`, all or none; others stay. Errors: see ApplyFeatures."""
        if not self._apply_lock.acquire(timeout=_APPLY_TIMEOUT_SECONDS):
            raise Conflict("other definitions are being applied; try again")
        try:
            before = self.snapshot
            resolved = tuple(_resolve_service(each) for each in definitions.services)
            after = _next_snapshot(before, definitions.views, resolved)
            changes = [diff("view", each.name, before.views.get(each.name), each) for each in definitions.views]
            changes += [diff("service", each.name, before.services.get(each.name), each) for each in resolved]
            if not dry_run:
                _save(self._file, after)
                self.snapshot = after
            return changes
        finally:
            self._apply_lock.release()


def _next_snapshot(
    before: DefinitionSnapshot, views: tuple[FeatureView, ...], services: tuple[FeatureService, ...]
) -> DefinitionSnapshot:
    layouts = dict(before.layouts)
    for view in views:
        _check_compatible(before, view)
        layouts[view.name] = _add_layout(layouts.get(view.name, ()), view)
    all_views = {**before.views, **{each.name: each for each in views}}
    # A service that is not in this request keeps the functions it was applied with.
    plans: dict[str, LookupPlan | TreadleError] = {}
    for name, service in before.services.items():
        old = before.plans[name]
        plans[name] = old if isinstance(old, TreadleError) else compile_plan(service, all_views)
    plans.update({each.name: compile_plan(each, all_views) for each in services})
    all_services = {**before.services, **{each.name: each for each in services}}
    return DefinitionSnapshot(all_views, all_services, plans, layouts)


def _check_compatible(before: DefinitionSnapshot, view: FeatureView) -> None:
    """FailedPrecondition for a change of entities or field types, which would misread the rows that are stored."""
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


def _add_layout(layouts: tuple[RowLayout, ...], view: FeatureView) -> tuple[RowLayout, ...]:
    wanted = RowLayout.of(_field_types(view))
    if any(each.number == wanted.number for each in layouts):
        return layouts
    return (*layouts, wanted)


def _field_types(view: FeatureView) -> tuple[tuple[str, str], ...]:
    return tuple((each.name, each.dtype) for each in view.fields)


def _resolve_service(service: FeatureService) -> FeatureService:
    """The service with its functions imported. FailedPrecondition when one is absent or its source differs."""
    return replace(service, transforms=tuple(_resolve_transform(each) for each in service.named_transforms))


def _resolve_transform(transform: Transform) -> Transform:
    call, digest = import_function(transform.function)
    if not is_transform(call):  # otherwise ApplyFeatures could name, and so call, any importable function
        raise FailedPrecondition(f"transform {transform.name!r}: {transform.function!r} is not marked with @transform")
    if transform.source_digest and transform.source_digest != digest:
        raise FailedPrecondition(
            f"transform {transform.name!r}: the source of {transform.function!r} here differs from the source that was "
            "applied; give this process the same code, or apply again with the code that is here"
        )
    return replace(transform, source_digest=digest, call=call)


def _load(file: Path) -> DefinitionSnapshot:
    if not file.exists():
        return DefinitionSnapshot()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise DataLoss(f"{file} has the format {content['format']!r}, this release reads {_FORMAT}")
        message = json_format.ParseDict(content["definitions"], pb.ApplyFeaturesRequest())
        definitions = codec.from_apply_request(message)
        layouts = {view: tuple(RowLayout.of(each) for each in history) for view, history in content["layouts"].items()}
    except DataLoss:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, json_format.ParseError, TreadleError) as error:
        raise DataLoss(f"{file} cannot be read as feature definitions: {error}; restore it from a copy") from error
    views = {each.name: each for each in definitions.views}
    plans: dict[str, LookupPlan | TreadleError] = {}
    for service in definitions.services:
        try:
            plans[service.name] = compile_plan(_resolve_service(service), views)
        except TreadleError as error:
            plans[service.name] = FailedPrecondition(
                f"feature service {service.name!r} is out of service: {error.message}"
            )
    return DefinitionSnapshot(views, {each.name: each for each in definitions.services}, plans, layouts)


def _save(file: Path, snapshot: DefinitionSnapshot) -> None:
    """Replaces the file atomically, after its bytes are on disk."""
    definitions = Definitions(tuple(snapshot.views.values()), tuple(snapshot.services.values()))
    content: dict[str, Any] = {
        "format": _FORMAT,
        "definitions": json_format.MessageToDict(codec.to_apply_request(definitions)),
        "layouts": {view: [each.fields for each in history] for view, history in snapshot.layouts.items()},
    }
    with map_disk_full("the disk is full; the definitions stay as they were"):
        write_atomically(file, json.dumps(content, indent=1).encode())
