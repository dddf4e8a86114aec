"""What is known of a flight 30 minutes before its scheduled departure.

`treadle features apply examples/flights/flights_features.py` tells the mesh; training uses the same definitions.
"""

from datetime import timedelta

import numpy as np

from treadle.features import Entity, FeatureService, FeatureView, Field, Source, transform

origin = Entity("origin", "STRING", "airport of departure: EWR, JFK or LGA")
carrier = Entity("carrier", "STRING", "two-letter airline code")
route = Entity("route", "STRING", "origin-destination: JFK-SFO")
tailnum = Entity("tailnum", "STRING", "registration of the aircraft")

weather = FeatureView(
    "weather",
    entities=[origin],
    source=Source("data/weather.parquet", "known_at"),
    fields=[
        Field("temperature", "FP64", unit="°F"),
        Field("humidity", "FP64", unit="%"),
        Field("wind_speed", "FP64", unit="mph"),
        Field("precipitation", "FP64", unit="inches"),
        Field("pressure", "FP64", unit="millibars"),
        Field("visibility", "FP64", unit="miles"),
    ],
    freshness=timedelta(hours=3),
    owner="weather desk",
    description="hourly observation at the origin",
)


def _delays(name: str, entity: Entity, prefix: str, hours: int, what: str) -> FeatureView:
    return FeatureView(
        name,
        entities=[entity],
        source=Source(f"data/{name}.parquet", "known_at"),
        fields=[
            Field(f"{prefix}_mean", "FP64", unit="minutes"),
            Field(f"{prefix}_late_share", "FP64", unit="share over 15 minutes"),
            Field(f"{prefix}_last", "FP64", unit="minutes"),
        ],
        freshness=timedelta(hours=hours),
        owner="flight operations",
        description=what,
    )


origin_departures = _delays("origin_departures", origin, "dep_delay", 24, "the last 30 departures of the airport")
carrier_departures = _delays("carrier_departures", carrier, "dep_delay", 24, "the last 50 departures of the airline")
carrier_arrivals = _delays("carrier_arrivals", carrier, "arr_delay", 24, "the last 50 arrivals of the airline")
route_arrivals = _delays("route_arrivals", route, "arr_delay", 24 * 7, "the last 20 arrivals on the route")
aircraft_arrivals = _delays("aircraft_arrivals", tailnum, "arr_delay", 24 * 30, "the last 5 arrivals of the aircraft")

planes = FeatureView(
    "planes",
    entities=[tailnum],
    source=Source("data/planes.parquet", "known_at"),
    fields=[Field("built", "INT64", unit="year"), Field("seats", "INT64"), Field("engines", "INT64")],
    owner="fleet registry",
    description="the aircraft itself; it never goes stale",
)


@transform(
    inputs=["hour", "minute", "planes__built", "planned_minutes", "distance"],
    outputs=[
        Field("departure_sin", "FP64"),
        Field("departure_cos", "FP64"),
        Field("aircraft_age", "FP64", unit="years"),
        Field("planned_speed", "FP64", unit="miles per hour"),
    ],
)
def schedule(columns):  # type: ignore[no-untyped-def]  # a dict of arrays in, a dict of arrays out
    """Time of day as a circle, the aircraft's age, and how tight the plan is."""
    angle = 2 * np.pi * (columns["hour"] * 60 + columns["minute"]) / 1440
    return {
        "departure_sin": np.sin(angle),
        "departure_cos": np.cos(angle),
        "aircraft_age": 2013 - columns["planes__built"],
        "planned_speed": columns["distance"] / (columns["planned_minutes"] / 60),
    }


flight_delay = FeatureService(
    "flight_delay",
    sets=[
        weather,
        origin_departures,
        carrier_departures,
        carrier_arrivals,
        route_arrivals,
        aircraft_arrivals,
        planes["built", "seats"],
    ],
    context=[
        Field("hour", "FP64", unit="hour of day, New York"),
        Field("minute", "FP64"),
        Field("weekday", "FP64", unit="1 = Monday"),
        Field("month", "FP64"),
        Field("distance", "FP64", unit="miles"),
        Field("planned_minutes", "FP64", unit="minutes"),
    ],
    transforms=[schedule],
    owner="demo",
    description="will this flight arrive more than 15 minutes late?",
)
