"""`treadle train`: trains a model with a function of the user, and registers it with its lineage."""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from treadle.cli.command import Session, command

if TYPE_CHECKING:
    from treadle.v1 import registry_pb2


@command(on_mesh=True)
@click.argument("function", metavar="MODULE:FUNCTION")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Parquet: the training table.")
@click.option("--model", "name", required=True, help="Name of the model to push a version of.")
@click.option("-p", "--parameter", "parameters", multiple=True, metavar="NAME=VALUE", help="Passed to the function.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the package there.")
@click.option("--no-push", is_flag=True, help="Only write the package to --folder.")
async def train(
    session: Session,
    function: str,
    data: Path,
    name: str,
    parameters: tuple[str, ...],
    folder: Path | None,
    no_push: bool,
) -> None:
    """Train a model with a function of yours and push it.

    The function gets a pyarrow table and returns treadle.jobs.train.Trained. It is found from this directory. Digest
    of the data, revision of the code and versions of what is installed are kept with the version.
    """
    if no_push and folder is None:
        raise click.UsageError("--no-push needs --folder")
    from treadle.cli.ui.to_jsonable import to_jsonable
    from treadle.client.references import format_ref
    from treadle.jobs.train import run_training

    with tempfile.TemporaryDirectory() as scratch:
        package = folder or Path(scratch) / "model"
        with session.out.progress(f"training {name}"):
            manifest = await asyncio.to_thread(
                run_training, function, data, package, parameters=dict(map(_parameter, parameters)), project=Path.cwd()
            )
        if no_push:
            session.out.show(to_jsonable(manifest), lambda: f"{package}: {_about(manifest)}")
            return
        async with session.client() as client:
            made = await client.push_model(name, package)
    session.out.show(to_jsonable(made), lambda: f"{format_ref(made.ref)}: {_about(made.manifest)}")


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _about(manifest: "registry_pb2.Manifest") -> str:
    from treadle.cli.ui.to_jsonable import metrics_text

    return f"{manifest.backend}, {metrics_text(manifest.metrics) or 'no metrics'}"
