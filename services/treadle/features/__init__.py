"""Features: the same values in training and in serving.

`definitions` is what users write, `offline` joins it with history, `service` serves it. What is exported here imports
neither DuckDB nor Arrow.
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
