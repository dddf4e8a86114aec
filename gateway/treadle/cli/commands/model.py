"""`treadle model push|list|show|card|alias`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from treadle.cli.command import Session, command

if TYPE_CHECKING:
    from treadle.v1 import registry_pb2, types_pb2


@click.group()
def model() -> None:
    """Push, list and look at models."""


@command(on_mesh=True)
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
async def push(session: Session, name: str, folder: Path) -> None:
    """Register what `save_model` wrote to FOLDER as the next version of NAME.

    Pushing the same folder again changes nothing and answers with the version made before.
    """
    from treadle.cli.ui.serving_form import serving_form
    from treadle.cli.ui.to_jsonable import to_jsonable
    from treadle.client.references import format_ref

    async with session.client() as client:
        with session.out.progress("pushing") as tell:
            made = await client.push_model(
                name, folder, progress=lambda at: tell(at.file, at.bytes_done, at.bytes_total)
            )
    size = sum(file.size_bytes for file in made.manifest.files)
    files = f"{len(made.manifest.files)} files, {size:,} bytes"
    text = f"{format_ref(made.ref)}  {files}; served by {serving_form(made.manifest)}"
    session.out.show(to_jsonable(made), lambda: text)


@command("list", on_mesh=True)
@click.argument("name", required=False)
async def list_(session: Session, name: str | None) -> None:
    """List all models, or the versions of one."""
    from treadle.cli.ui.output import table
    from treadle.cli.ui.to_jsonable import metrics_text, time_text, to_jsonable
    from treadle.client.references import format_ref

    async with session.client() as client:
        if name is None:
            models = await client.models()
            rows = [
                (
                    m.name,
                    m.latest_version,
                    _aliases(dict(m.aliases)),
                    m.owner,
                    time_text(m.created_micros),
                    m.description,
                )
                for m in models
            ]
            columns = ("model", ">latest", "aliases", "owner", "created", "description")
            session.out.show(to_jsonable(models), lambda: table(columns, rows))
            return
        versions = await client.versions(name)
    version_rows = [
        (
            format_ref(v.ref),
            v.manifest.backend,
            ", ".join(v.aliases),
            v.manifest.feature_service,
            metrics_text(v.manifest.metrics),
            v.created_by,
            time_text(v.created_micros),
        )
        for v in versions
    ]
    heads = ("version", "backend", "aliases", "feature service", "metrics", "by", "created")
    session.out.show(to_jsonable(versions), lambda: table(heads, version_rows))


@command(on_mesh=True)
@click.argument("version")
async def show(session: Session, version: str) -> None:
    """Show one version: MODEL/3 or MODEL@alias."""
    from treadle.cli.ui.to_jsonable import to_jsonable

    async with session.client() as client:
        found = await client.get_version(version)
    session.out.show(to_jsonable(found), lambda: _picture(found))


@command(on_mesh=True)
@click.argument("version")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write it there.")
async def card(session: Session, version: str, output: Path | None) -> None:
    """Write the model card of a version, in Markdown: what it is, where from, how good."""
    from treadle.cli.ui.model_card import model_card

    async with session.client() as client:
        found = await client.get_version(version)
        reports = await client.reports(version)
    text = model_card(found, reports)
    if output is not None:
        output.write_text(text)  # noqa: ASYNC240  # no other task runs
    written = None if output is None else str(output)
    session.out.show({"version": version, "markdown": text, "written": written}, lambda: written or _card(text))


@command(on_mesh=True)
@click.argument("model_name", metavar="MODEL")
@click.argument("alias_name", metavar="ALIAS")
@click.argument("version", type=click.IntRange(0))
async def alias(session: Session, model_name: str, alias_name: str, version: int) -> None:
    """Point ALIAS (such as champion) of MODEL at VERSION; 0 removes it."""
    from treadle.cli.ui.to_jsonable import to_jsonable

    async with session.client() as client:
        found = await client.set_alias(model_name, alias_name, version)
    session.out.show(to_jsonable(found), lambda: f"{found.name}: {_aliases(dict(found.aliases)) or 'no aliases'}")


for each in (push, list_, show, card, alias):
    model.add_command(each)


def _card(text: str) -> Any:
    """Rendered in a terminal; in a pipe the Markdown itself."""
    from rich.markdown import Markdown

    return Markdown(text) if sys.stdout.isatty() else text.rstrip()


def _aliases(aliases: dict[str, int]) -> str:
    return ", ".join(f"{name} → {version}" for name, version in sorted(aliases.items()))


def _picture(found: "registry_pb2.ModelVersion") -> Any:
    from rich.console import Group

    from treadle.cli.ui.output import facts, table
    from treadle.cli.ui.serving_form import serving_form
    from treadle.cli.ui.to_jsonable import metrics_text, time_text
    from treadle.client.references import format_ref

    manifest = found.manifest
    about = facts(
        (
            ("version", format_ref(found.ref)),
            ("aliases", ", ".join(found.aliases)),
            ("backend", manifest.backend),
            ("served by", serving_form(manifest)),
            ("description", manifest.description),
            ("feature service", manifest.feature_service),
            ("metrics", metrics_text(manifest.metrics)),
            ("parameters", ", ".join(f"{key} {value}" for key, value in sorted(manifest.parameters.items()))),
            ("created", f"{time_text(found.created_micros)} by {found.created_by}"),
            ("data", manifest.lineage.data_digest),
            ("code", manifest.lineage.code_revision),
            ("parent", format_ref(manifest.lineage.parent)),
        )
    )
    tensors = [
        *(("input", *_tensor(spec)) for spec in manifest.signature.inputs),
        *(("output", *_tensor(spec)) for spec in manifest.signature.outputs),
    ]
    files = [(file.path, f"{file.size_bytes:,}", file.sha256[:16]) for file in manifest.files]
    return Group(
        about,
        table(("", "tensor", "dtype", "shape", "columns"), tensors),
        table(("file", ">bytes", "sha256"), files),
    )


def _tensor(spec: "types_pb2.TensorSpec") -> tuple[str, str, str, str]:
    from treadle.rpc.codec.columns import from_proto

    columns = f"{len(spec.columns)}: {', '.join(spec.columns)}" if spec.columns else ""
    return spec.name, from_proto(spec.dtype), str(list(spec.shape)), columns
