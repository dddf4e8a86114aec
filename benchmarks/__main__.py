"""`make bench`: measures Treadle beside its peers on this machine, and writes docs/benchmarks/.

ARGS="--quick" measures what the targets need and no more; --only, --models and --parts measure less still. What is
less than a whole run is written to .bench/results instead. `make bench-check` reads the figures and exits with 1,
naming each target that is missed.
"""

import argparse
import asyncio
import dataclasses
import fcntl
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path

from benchmarks import isolation, load, matrix, models, ours, plot, report
from benchmarks.about import about
from benchmarks.effort import FULL, QUICK, Effort
from benchmarks.figures import Figures
from benchmarks.peer import PEERS, EnvironmentFailedError, make_environment
from benchmarks.servers import ROOT, WORK

DOCS = ROOT / "docs" / "benchmarks"
LATEST = "latest.json"
PARTS = ("matrix", "chain", "tracing", "rows")
_ROW_MODELS = ("lr", "rf")


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    options = _options(arguments)
    if options.check:
        return check(Path(options.check))
    effort = _effort(options)
    unavailable = _prepared(_names(effort, options.only))
    isolation.enter(arguments)
    load.require_h2load()
    lock_checkout()
    figures = Figures(
        about(effort.name, " ".join(["make bench", *arguments])), matrix.titles(), unavailable=unavailable
    )
    asyncio.run(_interruptible(_measure(options, effort, figures)))
    folder = Path(options.out or (DOCS if _is_whole(options) else WORK / "results"))
    figures.write(folder / LATEST)
    figures = Figures.read(folder / LATEST)  # rounded, so that page and file agree
    plot.draw(figures, folder / plot.FILE)
    report.write_page(figures, folder)
    sys.stdout.write(f"\n{report.terminal(figures)}\nwritten to {folder}\n")
    return 0


def lock_checkout() -> None:
    """Holds a lock until this process ends, because two benchmarks at once would disturb each other."""
    WORK.mkdir(exist_ok=True)
    lock = os.open(WORK / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("another benchmark runs in this checkout; two at once would measure each other")


def check(file: Path) -> int:
    """Returns 0 if the figures meet every target; otherwise prints the missed ones and returns 1."""
    if not file.exists():
        sys.stdout.write(f"{file} is not there; `make bench` writes it\n")
        return 1
    missed = report.missed(Figures.read(file))
    sys.stdout.write("".join(f"missed: {line}\n" for line in missed) or "every target is met\n")
    return 1 if missed else 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only what the targets need")
    parser.add_argument("--only", type=_list, default=(), metavar="SERVER,…", help=f"of {', '.join(matrix.titles())}")
    parser.add_argument("--models", type=_list, default=(), metavar="MODEL,…", help=f"of {', '.join(models.TITLES)}")
    parser.add_argument("--parts", type=_list, default=PARTS, metavar="PART,…", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS", help="also an open loop for so long")
    parser.add_argument("--seconds", type=float, default=0.0, help="of each run, to try things out")
    parser.add_argument("--out", help="folder for figures, page and picture")
    parser.add_argument(
        "--check", nargs="?", const=str(DOCS / LATEST), metavar="FILE", help="judge figures; run nothing"
    )
    options = parser.parse_args(arguments)
    for given, known in ((options.only, matrix.titles()), (options.models, models.TITLES), (options.parts, PARTS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    return options


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _effort(options: argparse.Namespace) -> Effort:
    effort = QUICK if options.quick else FULL
    if options.models:
        effort = dataclasses.replace(effort, models=options.models)
    if options.seconds:
        short = options.seconds
        effort = dataclasses.replace(effort, seconds=short, matrix_seconds=short, lone_seconds=short, repeats=1)
    return effort


def _is_whole(options: argparse.Namespace) -> bool:
    """Whether the run measures every target, except those of the soak."""
    return not (options.only or options.models or options.seconds or options.parts != PARTS)


def _names(effort: Effort, only: Sequence[str]) -> list[str]:
    """The servers of the matrix, in the order of the tables."""
    wanted = only or (*matrix.OURS, *(effort.peers or PEERS))
    return [name for name in matrix.titles() if name in wanted]


def _prepared(names: Sequence[str]) -> dict[str, str]:
    """Creates the environments of the peers, which needs a network. Returns the errors by environment."""
    unavailable = {}
    for peer in (PEERS[name] for name in names if name in PEERS):
        try:
            make_environment(peer)
        except EnvironmentFailedError as error:
            unavailable[peer.name] = str(error)
    return unavailable


async def _measure(options: argparse.Namespace, effort: Effort, figures: Figures) -> None:
    folder = WORK / "models"
    trained = models.prepare(folder)
    if "matrix" in options.parts:
        names = [name for name in _names(effort, options.only) if _may_run(name, figures)]
        for name in effort.models:
            await matrix.measure_model(trained[name], names, effort, figures)
    if "chain" in options.parts:
        await ours.chain(folder, effort, figures)
    if "tracing" in options.parts:
        await ours.tracing(trained["lr"], effort, figures)
    if "rows" in options.parts:
        for name in _ROW_MODELS:
            ours.in_process(trained[name], effort.rows or (64,), figures)
        await ours.rows(trained["lr"], effort, figures)
    if options.soak:
        await ours.soak(trained["lr"], options.soak, figures)


def _may_run(name: str, figures: Figures) -> bool:
    if name in figures.unavailable:
        return False
    if name in PEERS and not PEERS[name].alone_on_loopback and not isolation.isolated():
        figures.unavailable[name] = "it opens ports beyond loopback, and no network namespace can be made here"
        return False
    return True


async def _interruptible(work: Coroutine[None, None, None]) -> None:
    """Runs `work`; SIGTERM ends it as Ctrl-C does, so that every started server is stopped."""
    task = asyncio.create_task(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
