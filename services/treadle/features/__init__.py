"""Features: the same values in training and in serving.

Users write `definitions`; `offline` computes their features from history, for training; `service` serves them online.
The exports of this package import neither DuckDB nor Arrow.
"""

from treadle.features.definitions import (
    Columns,
    Definitions,
    Entity,
    FeatureService,
    FeatureSet,
    FeatureView,
    Field,
    Source,
    Transform,
    transform,
)
from treadle.features.loading import load_definitions

__all__ = [
    "Columns",
    "Definitions",
    "Entity",
    "FeatureService",
    "FeatureSet",
    "FeatureView",
    "Field",
    "Source",
    "Transform",
    "load_definitions",
    "transform",
]
