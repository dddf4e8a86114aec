"""Compilation of a feature service and its views into a plan: fields to read, transforms to run, columns to return.

Online lookups and offline joins execute the same plan, so that both give the same values.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from treadle.core.errors import InvalidInput, Violation
from treadle.core.hints import did_you_mean
from treadle.features.definitions import Entity, FeatureService, FeatureView, Field, Transform
from treadle.features.names import check_unique, full_name


@dataclass(frozen=True)
class ViewPlan:
    """The fields that a plan reads from one view."""

    view: FeatureView
    fields: tuple[Field, ...]

    @cached_property
    def features(self) -> tuple[str, ...]:
        """The feature name ("view__field") of each field."""
        return tuple(full_name(self.view.name, each.name) for each in self.fields)

    @cached_property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """(name, dtype) of each field, as row layouts list them."""
        return tuple((each.name, each.dtype) for each in self.fields)


@dataclass(frozen=True)
class LookupPlan:
    """A compiled lookup: view fields, context columns, transforms and outputs, all names checked."""

    service: FeatureService
    views: tuple[ViewPlan, ...]
    context: tuple[Field, ...]
    transforms: tuple[Transform, ...]
    outputs: tuple[str, ...]
    accepted_entities: Mapping[str, Entity]
    """Every entity of the service. A request must have those of `views`, and may have the others."""
    accepted_context: Mapping[str, Field]
    """Every context column of the service. A request must have those in `context`, and may have the others."""

    @cached_property
    def entities(self) -> tuple[Entity, ...]:
        """The entities that the plan's views need, in order of first use."""
        return tuple({each.name: each for plan in self.views for each in plan.view.entities}.values())

    def narrowed(self, outputs: Sequence[str]) -> "LookupPlan":
        """The plan for some outputs only, without what they do not need. InvalidInput if one is unknown."""
        check_unique(outputs, "output")
        for name in outputs:
            if name not in self.outputs:
                hint = did_you_mean(name, self.outputs)
                what = f"feature service {self.service.name!r} has no output {name!r:.80}{hint}"
                raise InvalidInput(what, [Violation("outputs", what)])
        return _prune_unused(replace(self, outputs=tuple(outputs)))


def compile_plan(service: FeatureService, views: Mapping[str, FeatureView]) -> LookupPlan:
    """The plan of a feature service. InvalidInput names an unknown view, field or input, or a contradiction."""
    what = f"feature service {service.name!r}"
    chosen = [_view_plan(what, each.view, each.fields, views) for each in service.feature_sets]
    features = [name for each in chosen for name in each.features]
    context = {each.name: each for each in service.context}
    transforms = service.named_transforms
    made = [each.name for t in transforms for each in t.outputs]
    check_unique([each.name for each in service.context], f"{what}: context column")
    check_unique([each.name for each in transforms], f"{what}: transform")
    every = [*features, *context, *made]
    check_unique(every, f"{what}: output")
    entities = _entities(what, chosen)
    check_unique([*entities, *context], f"{what}: request column")
    for transform in transforms:
        _check_known(f"transform {transform.name!r} takes", transform.inputs, [*features, *context])
    _check_known(f"{what} returns", service.outputs, every)
    outputs = tuple(service.outputs) or tuple(every)
    return _prune_unused(
        LookupPlan(service, tuple(chosen), tuple(service.context), transforms, outputs, entities, context)
    )


def _view_plan(what: str, name: str, fields: Sequence[str], views: Mapping[str, FeatureView]) -> ViewPlan:
    view = views.get(name)
    if view is None:
        raise InvalidInput(f"{what} names the unknown view {name!r}{did_you_mean(name, views)}")
    by_name = {each.name: each for each in view.fields}
    for field in fields:
        if field not in by_name:
            raise InvalidInput(f"{what}: view {name!r} has no field {field!r:.80}{did_you_mean(field, by_name)}")
    return ViewPlan(view, tuple(by_name[each] for each in fields) or tuple(view.fields))


def _entities(what: str, views: Iterable[ViewPlan]) -> dict[str, Entity]:
    found: dict[str, Entity] = {}
    for plan in views:
        for entity in plan.view.entities:
            other = found.setdefault(entity.name, entity)
            if other.dtype != entity.dtype:
                raise InvalidInput(
                    f"{what}: entity {entity.name!r} is {other.dtype} in one view, {entity.dtype} in another"
                )
    return found


def _check_known(what: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise InvalidInput(f"{what} the unknown feature {name!r:.80}{did_you_mean(name, known)}")


def _prune_unused(plan: LookupPlan) -> LookupPlan:
    """The plan without the fields, transforms and context columns that no output depends on."""
    wanted = set(plan.outputs)
    transforms = tuple(t for t in plan.transforms if wanted & {each.name for each in t.outputs})
    wanted.update(name for t in transforms for name in t.inputs)
    views = []
    for each in plan.views:
        fields = tuple(f for f, name in zip(each.fields, each.features, strict=True) if name in wanted)
        if fields:
            views.append(ViewPlan(each.view, fields))
    context = tuple(each for each in plan.context if each.name in wanted)
    return replace(plan, views=tuple(views), transforms=transforms, context=context)
