"""A small shop: what is known of a customer, and what a basket adds."""

from datetime import timedelta

import numpy as np

from treadle.features import Entity, FeatureService, FeatureView, Field, Source, transform

customer = Entity("customer", "INT64")

spending = FeatureView(
    "spending",
    entities=[customer],
    source=Source("spending.parquet", "known_at"),
    fields=[
        Field("visits", "INT64"),
        Field("mean_amount", "FP64", unit="euro"),
        Field("street", "STRING", sensitivity="pii"),
    ],
    freshness=timedelta(days=3650),
    owner="tests",
)


@transform(inputs=["spending__mean_amount", "basket"], outputs=[Field("ratio", "FP64")])
def ratio(columns):
    """How this basket compares with what the customer usually spends."""
    return {"ratio": columns["basket"] / np.maximum(columns["spending__mean_amount"], 1)}


purchase = FeatureService(
    "purchase", sets=[spending], context=[Field("basket", "FP64", unit="euro")], transforms=[ratio]
)
