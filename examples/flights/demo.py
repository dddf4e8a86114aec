"""The whole story on real flights: `make demo`, or `treadle demo` in this repository.

Will this flight arrive more than 15 minutes late, asked 30 minutes before its scheduled departure? Features, training,
evaluation, a gated rollout, live traffic, an outage and one trace, each step checked.
"""

import asyncio
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import flights_data
import flights_rules
import flights_training as training
import numpy as np
import pyarrow as pa
from flights_replay import Answered, Replay
from flights_story import Story
from rich.panel import Panel
from rich.table import Table

from treadle.client import AsyncClient, Fallback
from treadle.evaluation.ledger.ledger import Ledger
from treadle.evaluation.offline.gate_policy import read_policy
from treadle.features import Definitions, load_definitions
from treadle.features.definition_codec import service_to_proto, view_to_proto
from treadle.jobs.materialize import materialize
from treadle.mesh.supervisor import Mesh
from treadle.plugins.packaging import load_package
from treadle.v1 import evaluation_pb2, features_pb2_grpc

HERE = training.HERE
DATA = HERE / "data"
HOME = Path(".treadle/demo")
MODEL, RULE, HEURISTIC, DEPLOYMENT = "flight-delay", "flight-always-on-time", "flight-late-by-hour", "flight-delay"
BOOSTING, NETWORK = 1, 2
TRAIN, VALIDATE, LIVE = ("2013-01-02", "2013-09-01"), ("2013-09-01", "2013-10-01"), ("2013-10-01", "2013-10-04")
CLIENTS = 8


async def main(exit_after: bool = False) -> int:
    """Tells the story; 0 if every check held. Leaves the mesh up until Ctrl-C unless `exit_after`."""
    story = Story()
    story.console.print(Panel.fit("[bold]Treadle[/]: will this flight be late? Real flights from New York, 2013."))
    shutil.rmtree(HOME, ignore_errors=True)
    with story.progress("preparing the flights"):
        await asyncio.to_thread(flights_data.prepare, DATA)
    async with Mesh(HOME, project=HERE) as mesh, AsyncClient(mesh.address("gateway"), actor="demo") as client:
        definitions = load_definitions(training.DEFINITIONS)
        await define_features(story, client, definitions)
        await train_and_judge(story, client)
        replay = await serve_live(story, mesh, client, definitions)
        await compare(story, client, replay)
        await hurry(story, replay)
        await trace_one(story, replay)
        held = story.conclude()
        if not exit_after:
            await stay(story, mesh)
    return 0 if held else 1


async def define_features(story: Story, client: AsyncClient, definitions: Definitions) -> None:
    story.chapter(1, "Features: what is known 30 minutes before departure")
    changes = await client.apply_features(
        [view_to_proto(view) for view in definitions.views], [service_to_proto(each) for each in definitions.services]
    )
    story.say(f"applied {len(definitions.views)} views and 1 feature service ({len(changes)} objects)")
    stub = features_pb2_grpc.FeatureServiceStub(client.channel)
    with story.progress("materializing what was known on October 1", len(definitions.views)) as advance:
        written = 0
        for number, view in enumerate(definitions.views):
            written += (await materialize(view, stub, until=training_moment(LIVE[0]))).written
            advance(number + 1)
    story.say(f"materialized {written:,} entities into the online store, as of October 1")
    leak = find_leak()
    asked_at, landed_at = f"{leak['asked_at']:%H:%M}", f"{leak['landed_at']:%H:%M}"
    story.say(
        f"why time matters: {leak['flight']} was asked about at {asked_at} UTC. The previous flight of its aircraft"
    )
    story.say(f"landed at {landed_at}, {leak['leaked']:.0f} minutes late. Joined by schedule, training would see that;")
    story.say(f"as known at {asked_at}, the last delay was {leak['known']:.0f} minutes.")
    story.say(f"{leak['flights']:,} flights of the year would leak like this.")
    asked = training.flights(DATA, *LIVE)
    row = asked["flight_id"].to_pylist().index(leak["flight_id"])
    joined = training.with_features(asked.slice(row, 1)).table
    honest = joined["aircraft_arrivals__arr_delay_last"][0].as_py()
    story.check("the point-in-time join uses the landed flight, not the one in the air", honest == leak["known"])


def training_moment(day: str) -> Any:
    """Midnight UTC of a day, as a datetime."""
    from datetime import UTC, datetime

    return datetime.fromisoformat(day).replace(tzinfo=UTC)


def find_leak() -> dict[str, Any]:
    """A flight whose aircraft was still in the air, late, when it was asked about."""
    with duckdb.connect() as db:
        db.execute("set timezone = 'UTC'")
        found = db.sql(f"""
            with previous as (
              select flight_id, carrier || flight || ' ' || route as flight, tailnum, sched_dep, asked_at,
                lag(arrived_at) over by_schedule as landed_at, lag(arr_delay) over by_schedule as leaked
              from '{DATA}/flights.parquet' where tailnum is not null and arr_delay is not null
              window by_schedule as (partition by tailnum order by sched_dep)
            )
            select p.*, a.arr_delay_last as known,
              (select count(*) from previous where landed_at > asked_at) as flights
            from previous p asof join '{DATA}/aircraft_arrivals.parquet' a
              on a.tailnum = p.tailnum and p.asked_at >= a.known_at
            where p.landed_at > p.asked_at and p.landed_at < p.asked_at + interval 3 hour
              and p.asked_at between '{LIVE[0]}' and '{LIVE[1]}' and known < 0
            order by leaked desc limit 1
        """)
        return dict(zip(found.columns, found.fetchall()[0], strict=True))


async def train_and_judge(story: Story, client: AsyncClient) -> None:
    story.chapter(2, "Train on January to August, judge on September")
    with story.progress("joining 240,000 flights with their features"):
        rows = await asyncio.to_thread(lambda: training.with_features(training.flights(DATA, *TRAIN)))
        september = await asyncio.to_thread(lambda: training.with_features(training.flights(DATA, *VALIDATE)))
    story.say(
        f"{len(rows.labels):,} flights to learn from, {len(september.labels):,} to judge, {len(rows.names)} features"
    )
    lineage = training.lineage_of(rows)
    folder = HOME / "models"
    for number, (train, name) in enumerate(
        ((training.train_boosting, "boosting (scikit-learn)"), (training.train_network, "network (torch)")), start=1
    ):
        with story.progress(f"training {name}"):
            await asyncio.to_thread(train, rows, folder / str(number), lineage)
        version = await client.push_model(MODEL, folder / str(number))
        story.say(f"{name} → {version.ref.model}/{version.ref.version}")
    for rule, model in ((flights_rules.always_on_time, RULE), (flights_rules.by_hour, HEURISTIC)):
        training.save_rule(rule, folder / model, (rule.__doc__ or "").strip())
        await client.push_model(model, folder / model)
    dataset = (HOME / "september.parquet").resolve()
    write(september.table, dataset)
    gate = read_policy(HERE / "gate.toml")
    await judge(story, client, dataset, f"{MODEL}/{BOOSTING}", f"{RULE}/1", gate)
    against = evaluation_pb2.GatePolicy(name="no worse than boosting", minimum_rows=1000)
    against.thresholds.add(metric="roc_auc", at_least=-0.02, relative_to_baseline=True, confident=True)
    await judge(story, client, dataset, f"{MODEL}/{NETWORK}", f"{RULE}/1", gate)
    await judge(story, client, dataset, f"{MODEL}/{NETWORK}", f"{MODEL}/{BOOSTING}", against)


async def judge(story: Story, client: AsyncClient, dataset: Path, version: str, baseline: str, gate: Any) -> None:
    with story.progress(f"evaluating {version} against {baseline}", 1) as advance:
        report = await client.evaluate(
            version,
            str(dataset),
            label=training.LABEL,
            slices=["origin", "carrier", "hour_of_day"],
            score_output="probability",
            baseline=baseline,
            gate=gate,
            dataset_name="flights, September 2013",
            bootstrap_resamples=100,
            progress=lambda p: advance(p.rows_done / max(1, p.rows_total)),
        )
    whole = {each.metric: each for each in report.slices[0].candidate}
    base = {each.metric: each for each in report.slices[0].baseline}
    auc, other = whole["roc_auc"], base["roc_auc"]
    story.say(
        f"{version}: AUC {auc.value:.4f} [{auc.low:.4f}, {auc.high:.4f}] on {report.rows:,} flights, "
        f"{len(report.slices) - 1} slices; {baseline}: {other.value:.4f}"
    )
    story.check(
        f"gate “{gate.name}”: {evaluation_pb2.Verdict.Name(report.gate.verdict).removeprefix('VERDICT_').lower()}",
        report.gate.verdict == evaluation_pb2.VERDICT_PASS,
    )


def write(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path)


async def serve_live(story: Story, mesh: Mesh, client: AsyncClient, definitions: Definitions) -> Replay:
    story.chapter(3, "Deploy 90/10 with a fallback, then three days of October as live traffic")
    await client.deploy(
        DEPLOYMENT,
        {f"{MODEL}/{BOOSTING}": 90, f"{MODEL}/{NETWORK}": 10},
        fallbacks=[Fallback("by-hour", version=f"{HEURISTIC}/1")],
        sticky_entity="tailnum",
        reason="demo",
    )
    asked = training.flights(DATA, *LIVE)
    replay = Replay(mesh.address("gateway"), DEPLOYMENT, asked, definitions.views, CLIENTS)
    await client.wait_until_ready(DEPLOYMENT)
    outage = Outage(mesh, replay)
    started = time.perf_counter()
    with story.progress(f"{replay.flights:,} flights asked about by {CLIENTS} clients", replay.flights) as advance:

        async def tick(done: int) -> None:
            advance(done)
            await outage.at(done)

        await replay.run(tick)
    seconds = time.perf_counter() - started
    record = replay.record
    story.say(
        f"{len(record.answered):,} answers in {seconds:.0f} s; {record.rows_pushed:,} feature rows pushed and "
        f"{record.labels:,} labels sent meanwhile"
    )
    for failure, count in Counter(record.failed).most_common(3):
        story.say(f"[red]{count} × {failure}[/]")
    story.check("every flight was answered", len(record.answered) == replay.flights)
    report_split(story, record.answered)
    report_outage(story, outage, record.answered)
    return replay


class Outage:
    """Stops the feature service after a quarter of the flights, for a twentieth of them."""

    def __init__(self, mesh: Mesh, replay: Replay) -> None:
        self._mesh = mesh
        self._replay = replay
        self._from, self._to = replay.flights // 4, replay.flights // 4 + replay.flights // 20
        self.answered = range(0)

    async def at(self, done: int) -> None:
        if not self._replay.away and self._from <= done < self._to:
            self._replay.away = True
            await self._mesh.stop("features")
            self.answered = range(done, done)
        elif self._replay.away and done >= self._to:
            await self._mesh.start("features")
            self._replay.away = False
            self.answered = range(self.answered.start, done)


def report_split(story: Story, answered: list[Answered]) -> None:
    live = [each for each in answered if each.served_by == "traffic"]
    p50, p99 = np.percentile([each.seconds * 1000 for each in live], [50, 99])
    story.say(f"latency as the clients saw it while the replay went on: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    share = sum(each.version == BOOSTING for each in live) / len(live)
    split = f"split achieved: {share:.1%} / {1 - share:.1%}, sticky by aircraft (asked: 90 / 10)"
    story.check(split, abs(share - 0.9) < 0.03)


def report_outage(story: Story, outage: Outage, answered: list[Answered]) -> None:
    during = [answered[at] for at in outage.answered]
    marked = [each for each in during if each.served_by == "fallback:by-hour" and each.degraded_reason]
    story.say(f"the feature service was stopped for {len(during)} flights; an answer from then says why:")
    story.say(f"   [dim]{marked[0].degraded_reason if marked else 'nothing'}[/]")
    said = f"while it was down, {len(marked)} of {len(during)} answers came from the fallback, marked"
    story.check(said, len(marked) == len(during) > 0)
    after = answered[outage.answered.stop :]
    story.check("afterwards the models answer again", bool(after) and after[-1].served_by == "traffic")


async def compare(story: Story, client: AsyncClient, replay: Replay) -> None:
    story.chapter(4, "Offline and online: the same flights, the same numbers")
    live = [each for each in replay.record.answered if each.served_by == "traffic"]
    metrics = await settled(client, len(replay.record.answered))
    asked = training.flights(DATA, *LIVE)
    offline = await asyncio.to_thread(lambda: training.with_features(asked))
    check_parity(story, offline, live)
    table = Table("version", "flights", "AUC offline", "AUC online", box=None, padding=(0, 3))
    agree = True
    for version, dtype in ((BOOSTING, np.float64), (NETWORK, np.float32)):
        rows = [each.row for each in live if each.version == version]
        expected = offline_auc(version, offline, rows, dtype)
        found = next(each for each in metrics if each.model.version == version and each.model.model == MODEL)
        online = next(each.value for each in found.metrics if each.metric == "roc_auc")
        agree &= abs(expected - online) < 1e-6 and found.labelled == len(rows)
        table.add_row(f"{MODEL}/{version}", f"{found.labelled:,}", f"{expected:.6f}", f"{online:.6f}")
    story.show(table)
    story.check("offline and online AUC agree to six digits", agree)


async def settled(client: AsyncClient, predictions: int) -> list[evaluation_pb2.LiveMetrics]:
    """Live metrics once the ledger has every prediction: records travel off the request path."""
    async with asyncio.timeout(30):
        while True:
            metrics = await client.live_metrics(DEPLOYMENT, score_output="probability")
            if metrics and sum(each.predictions for each in metrics if each.model.model) >= predictions:
                return metrics
            await asyncio.sleep(0.3)


def check_parity(story: Story, offline: training.Rows, live: list[Answered]) -> None:
    """Every feature of every flight that a model answered: what serving used against what training would."""
    used = Ledger(HOME / "evaluation").features(DEPLOYMENT, [each.prediction_id for each in live])
    rows = [each.row for each in live]
    values = different = 0
    for name in offline.names:
        expected = offline.table[name].to_numpy(zero_copy_only=False).astype(np.float64)[rows]
        values += len(rows)
        different += int((~np.equal(expected, used[name]) & ~(np.isnan(expected) & np.isnan(used[name]))).sum())
    story.check(f"training-serving parity: {values:,} feature values compared, {different} differ", different == 0)


def offline_auc(version: int, offline: training.Rows, rows: list[int], dtype: Any) -> float:
    from sklearn.metrics import roc_auc_score

    outputs = load_package(HOME / "models" / str(version)).predict({"features": offline.matrix[rows].astype(dtype)})
    scores = np.asarray(outputs["probability"])
    return float(roc_auc_score(offline.labels[rows], scores[:, 1] if scores.ndim == 2 else scores))


async def hurry(story: Story, replay: Replay) -> None:
    story.chapter(5, "As fast as it goes, everything on this machine")
    with story.progress("asking"):
        took = await replay.burst(seconds=5, in_flight=32)
    p50, p99 = np.percentile(np.array(took) * 1000, [50, 99])
    story.say(
        f"{len(took) / 5:.0f} predictions by entity key a second with 32 in flight: p50 {p50:.0f} ms, p99 {p99:.0f} ms"
    )


async def trace_one(story: Story, replay: Replay) -> None:
    story.chapter(6, "One request, hop by hop")
    await asyncio.sleep(1)  # under load only some requests are traced; after a quiet second each is again
    answers = await replay.ask_calmly(21)
    live = sorted((each for each in answers if each.served_by == "traffic"), key=lambda each: each.seconds)
    chosen = live[len(live) // 2].trace_id
    story.console.print(f"   [dim]$ treadle trace {chosen}[/]")
    await asyncio.sleep(2)  # spans are exported once a second
    command = [sys.executable, "-m", "treadle.cli.main", "trace", chosen, "--home", str(HOME)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    story.console.out(done.stdout or done.stderr)
    story.check(
        "one trace through gateway, features and inference",
        all(f"{s}" in done.stdout for s in ("gateway", "features", "inference")),
    )


async def stay(story: Story, mesh: Mesh) -> None:
    story.console.print(
        Panel(
            "The mesh is still up. In another terminal, from this folder:\n\n"
            f"  .venv/bin/treadle status --home {HOME}\n"
            f"  .venv/bin/treadle trace --home {HOME}\n"
            f"  .venv/bin/treadle model card {MODEL}/{BOOSTING} --home {HOME}\n"
            f"  .venv/bin/treadle rollback {DEPLOYMENT} --home {HOME}\n"
            f"  curl http://{mesh.rest_address}/docs\n\n"
            "Ctrl-C ends it.",
            title="what to try next",
            expand=False,
        )
    )
    await asyncio.Event().wait()
