"""Reports of the figures: the targets in a terminal, and the tables of docs/benchmarks/README.md."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.figures import Cell, Figures, Key
from benchmarks.models import TITLES
from benchmarks.targets import TargetResult, target_results

PAGE = "README.md"
_BLOCK = re.compile(r"(<!-- begin figures -->\n).*?(<!-- end -->)", re.DOTALL)
_CURVE_SERVERS = ("treadle-envoy", "treadle-grpcio")
_PERCENT = 100.0


def terminal(figures: Figures) -> str:
    """The table of targets: each ratio beside its limit."""
    verdicts = target_results(figures)
    rows = [("target", "against", "ratio", "limit", "")]
    rows += [(each.target.what, each.target.against, _ratio(each), _limit(each), _mark(each)) for each in verdicts]
    widths = [max(len(row[place]) for row in rows) for place in range(4)]
    lines = [
        f"{what:<{widths[0]}}  {against:<{widths[1]}}  {ratio:>{widths[2]}}  {limit:>{widths[3]}}  {mark}".rstrip()
        for what, against, ratio, limit, mark in rows
    ]
    met = sum(each.met for each in verdicts)
    lines += ["", f"{met} of {len(verdicts)} targets met"]
    lines += [f"not measured: {place}: {why}" for place, why in figures.unavailable.items()]
    return "\n".join(lines)


def missed(figures: Figures) -> list[str]:
    """A line for each target that is not met."""
    return [
        f"{each.target.what}, against {each.target.against}: {_ratio(each)}, limit {_limit(each)}"
        for each in target_results(figures)
        if not each.met
    ]


def write_page(figures: Figures, folder: Path) -> None:
    """Writes the tables into the page, which is created if it does not exist."""
    page = folder / PAGE
    text = (
        page.read_text(encoding="utf-8") if page.exists() else "# Benchmarks\n\n<!-- begin figures -->\n<!-- end -->\n"
    )
    page.write_text(with_figures(text, figures), encoding="utf-8")


def with_figures(text: str, figures: Figures) -> str:
    """The page with the tables of these figures."""
    body = "\n".join(_markdown(figures)) + "\n"
    return _BLOCK.sub(lambda found: f"{found[1]}{body}{found[2]}", text)


def _markdown(figures: Figures) -> Iterator[str]:
    hardware = figures.about["hardware"]
    yield (
        f"\n{figures.about['date']}, `{figures.about['arguments']}`: {hardware['cpu']}, {hardware['cores']} cores, "
        f"{hardware['memory_gib']:g} GiB; {hardware['system']}. Load: {figures.about['load_generator']}."
    )
    yield "\n### Targets\n"
    yield from _table(
        ("", "against", ">ratio", ">limit", ""),
        ((v.target.what, v.target.against, _ratio(v), _limit(v), _mark(v)) for v in target_results(figures)),
    )
    for model, title in TITLES.items():
        yield from _of_model(figures, model, title)
    yield from _of_chain(figures)
    yield from _of_tracing(figures)
    yield from _of_rows(figures)
    yield from _of_rates(figures)
    yield from _of_soak(figures)
    yield from _of_versions(figures)


def _of_model(figures: Figures, model: str, title: str) -> Iterator[str]:
    for rows in sorted({cell.rows for cell in figures.of_task(model)}):
        flights = sorted({cell.concurrency for cell in figures.of_task(model) if cell.rows == rows})
        yield f"\n### {title[0].upper()}{title[1:]}, {_rows(rows)} a request\n"
        rates = [f">req/s, {flight} in flight" for flight in flights]
        lone = [">lone p50 ms", ">p99", ">p99.9"] if rows == 1 else []
        heads = ["server", *rates, ">p50 ms", ">p99", ">p99.9", *lone, ">errors", ">CPU s / 1,000", ">MiB"]
        yield from _table(heads, _servers(figures, model, rows, flights))


def _servers(figures: Figures, model: str, rows: int, flights: Sequence[int]) -> Iterator[list[str]]:
    for server, title in figures.titles.items():
        cells = [figures.cell(Key(server, model, rows, flight)) for flight in flights]
        widest = cells[-1] if cells else None
        if not any(cells):
            continue
        lone = _latency(figures, server, model) if rows == 1 else []
        errors = sum(cell.errors for cell in cells if cell)
        yield [
            title,
            *(f"{cell.requests_per_second:,.0f}" if cell else "–" for cell in cells),
            *_percentiles(widest),
            *lone,
            f"{errors:,}",
            f"{widest.cpu_seconds_per_1000:.3f}" if widest else "–",
            f"{widest.memory_mib:,.0f}" if widest else "–",
        ]


def _percentiles(cell: Cell | None) -> list[str]:
    return [f"{each:.1f}" for each in (cell.p50_ms, cell.p99_ms, cell.p999_ms)] if cell else ["–"] * 3


def _latency(figures: Figures, server: str, task: str, rate: float = 0.0) -> list[str]:
    found = figures.latency(server, task, rate)
    return [f"{each:.2f}" for each in (found.p50_ms, found.p99_ms, found.p999_ms)] if found else ["–"] * 3


def _of_chain(figures: Figures) -> Iterator[str]:
    places = {"direct": "ModelInfer alone", "chain": "gateway → features → inference", "features": "feature lookup"}
    found = [cell for task in places for cell in figures.of_task(task)]
    if not found:
        return
    yield "\n### The whole chain, and feature lookup (LMDB, 11 features)\n"
    heads = ("", "server", ">rows", ">in flight", ">req/s", ">p50 ms", ">p99", ">p99.9", ">lone p50 ms", ">errors",
             ">CPU s / 1,000", ">MiB")  # fmt: skip
    yield from _table(
        heads,
        (
            (places[cell.task], _server_title(figures, cell.server), str(cell.rows), str(cell.concurrency),
             f"{cell.requests_per_second:,.0f}", *_percentiles(cell), _lone_beside(figures, cell), f"{cell.errors:,}",
             f"{cell.cpu_seconds_per_1000:.3f}", f"{cell.memory_mib:,.0f}")
            for cell in found
        ),
    )  # fmt: skip


def _lone_beside(figures: Figures, cell: Cell) -> str:
    """The latency of sequential requests, shown only in the row of the highest load."""
    return _latency(figures, cell.server, cell.task)[0] if (cell.rows, cell.concurrency) == (1, 64) else ""


def _of_tracing(figures: Figures) -> Iterator[str]:
    found = [cell for cell in figures.cells if cell.task.startswith("traced ")]
    if found:
        yield "\n### Tracing, the trace store on the same cores\n"
        yield from _table(
            ("requests traced", ">req/s", ">p50 ms", ">p99", ">p99.9", ">errors", ">CPU s / 1,000"),
            (
                (cell.task.removeprefix("traced "), f"{cell.requests_per_second:,.0f}", *_percentiles(cell),
                 f"{cell.errors:,}", f"{cell.cpu_seconds_per_1000:.3f}")
                for cell in found
            ),
        )  # fmt: skip


def _of_rows(figures: Figures) -> Iterator[str]:
    counts = sorted({cell.rows for cell in figures.of_task("rows")} | {each.rows for each in figures.in_process})
    if not counts:
        return
    yield "\n### Rows a second by rows of a request (logistic regression; 16 requests in flight)\n"
    lines = []
    for count in counts:
        served = [figures.cell(Key(server, "rows", count, 16)) for server in _CURVE_SERVERS]
        alone = [figures.of_model(model, count) for model in ("lr", "rf")]
        cells = [f"{cell.rows_per_second:,.0f}" if cell else "–" for cell in served]
        lines.append([str(count), *cells, *(f"{each.rows_per_second:,.0f}" if each else "–" for each in alone)])
    titles = [f">{_server_title(figures, server)}" for server in _CURVE_SERVERS]
    yield from _table((">rows", *titles, ">session.run alone", ">session.run alone, random forest"), lines)


def _of_rates(figures: Figures) -> Iterator[str]:
    found = [each for each in figures.latencies if each.rate]
    if found:
        yield f"\n### Open loop: {found[0].rate:g} requests a second, at random moments\n"
        yield from _table(
            ("server", "model", ">p50 ms", ">p99", ">p99.9", ">errors"),
            (
                (_server_title(figures, each.server), TITLES.get(each.task, each.task),
                 f"{each.p50_ms:.2f}", f"{each.p99_ms:.2f}", f"{each.p999_ms:.2f}", f"{each.errors:,}")
                for each in found
            ),
        )  # fmt: skip


def _of_soak(figures: Figures) -> Iterator[str]:
    soak = figures.soak
    if soak:
        yield "\n### Soak\n"
        yield (
            f"{soak.seconds:g} s at {soak.requests_per_second:,.0f} requests a second, "
            f"{soak.share_of_capacity * _PERCENT:.0f} % of capacity: {soak.requests:,} requests, {soak.errors:,} "
            f"errors; resident memory {soak.memory_after_a_minute_mib:.1f} MiB after a minute, "
            f"{soak.memory_at_the_end_mib:.1f} MiB at the end ({soak.growth * _PERCENT:+.2f} %)."
        )


def _of_versions(figures: Figures) -> Iterator[str]:
    if figures.unavailable:
        yield "\n### Not measured\n"
        yield from _table(("", "why"), figures.unavailable.items())
    yield "\n### Versions\n"
    yield from _table(
        ("environment", "versions"),
        (
            (name, ", ".join(f"{package} {number}" for package, number in versions.items()))
            for name, versions in (("treadle", figures.about["versions"]), *figures.about["peers"].items())
        ),
    )
    yield ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head.removeprefix('>') for head in heads)} |"
    yield f"|{'|'.join('---:' if head.startswith('>') else '---' for head in heads)}|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"


def _server_title(figures: Figures, server: str) -> str:
    plain = server.removesuffix("-colocated")
    title = figures.titles.get(plain, plain)
    return f"{title}, one process" if plain != server else title


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _ratio(result: TargetResult) -> str:
    return "not measured" if result.ratio is None else f"{result.ratio:.4g}×"


def _limit(result: TargetResult) -> str:
    return f"{'≤' if result.target.at_most else '≥'} {result.target.limit:g}×"


def _mark(result: TargetResult) -> str:
    return "✓" if result.met else "✗"
