"""What may be recorded follows from the definitions, all of them."""

from treadle.core.errors import TreadleError
from treadle.gateway.policy.deployments import ServedDeployment
from treadle.gateway.policy.policy_cache import PolicyCache
from treadle.v1 import features_pb2, registry_pb2, types_pb2

FP64, STRING = types_pb2.DATA_TYPE_FP64, types_pb2.DATA_TYPE_STRING
REF = types_pb2.ModelRef(model="m", version=1)


def view(name: str, entity: str, *fields: features_pb2.FeatureField) -> features_pb2.FeatureView:
    return features_pb2.FeatureView(
        name=name, entities=[features_pb2.Entity(name=entity, dtype=STRING)], fields=list(fields)
    )


def deployment(*views: features_pb2.FeatureView) -> ServedDeployment:
    """The deployment of a model that uses the views "first" and "second", of which `views` are known."""
    cache = PolicyCache(
        services={
            "s": features_pb2.FeatureServiceSpec(
                name="s", sets=[features_pb2.FeatureSet(view=name) for name in ("first", "second")]
            )
        },
        views={each.name: each for each in views},
    )
    tensor = types_pb2.TensorSpec(name="x", dtype=FP64, shape=[-1])
    signature = types_pb2.Signature(inputs=[tensor], outputs=[tensor])
    manifest = registry_pb2.Manifest(backend="python", signature=signature, feature_service="s")
    cache.add_version(registry_pb2.ModelVersion(ref=REF, manifest=manifest))
    named = registry_pb2.Deployment(name="d", traffic=[registry_pb2.TrafficShare(ref=REF, weight=100)])
    return cache.snapshot({"d": named}, _never).deployment("d")


def _never(what: str, error: TreadleError) -> None:
    raise AssertionError(what) from error


SECRET = features_pb2.FeatureField(name="income", dtype=FP64, sensitivity="pii")
KEY = features_pb2.FeatureField(name="street", dtype=STRING, sensitivity="pii")


def test_fields_that_are_tagged_are_sensitive() -> None:
    found = deployment(view("first", "tail", SECRET), view("second", "tail"))
    assert found.sensitive_columns == frozenset({"first__income"})


def test_a_tag_holds_for_the_key_of_any_view() -> None:
    found = deployment(view("first", "tail", KEY), view("second", "street"))
    assert found.sensitive_columns == frozenset({"first__street", "street"})


def test_while_a_view_is_unknown_so_is_what_is_sensitive() -> None:
    found = deployment(view("first", "tail", SECRET))
    assert found.sensitive_columns is None
    assert found.known_columns is None
