"""The `treadle` command."""

import click

from treadle.cli.ui.lazy import LazyGroup, Section

_AT = "treadle.cli.commands"

SECTIONS: tuple[Section, ...] = (
    (
        "Run a mesh",
        {
            "demo": (f"{_AT}.demo:demo", "Tell the whole story on real flights."),
            "up": (f"{_AT}.up:up", "Start all services here and keep them running."),
            "down": (f"{_AT}.control:down", "End the running mesh."),
            "status": (f"{_AT}.status:status", "Show how each service of the mesh is."),
            "start": (f"{_AT}.control:start", "Start one service of the running mesh."),
            "stop": (f"{_AT}.control:stop", "Stop one service of the running mesh; it stays down."),
            "serve": (f"{_AT}.serve:serve", "Run one service in this process."),
            "doctor": (f"{_AT}.doctor:doctor", "Check this machine, and say what to do about what is wrong."),
        },
    ),
    (
        "Models and deployments",
        {
            "train": (f"{_AT}.train:train", "Train a model with a function of yours and push it."),
            "model": (f"{_AT}.model:model", "Push, list and look at models."),
            "evaluate": (f"{_AT}.evaluate:evaluate", "Judge a version on a dataset."),
            "deploy": (f"{_AT}.deploy:deploy", "Say which versions serve."),
            "promote": (f"{_AT}.deploy:promote", "Send all traffic of a deployment to one version."),
            "rollback": (f"{_AT}.deploy:rollback", "Make a deployment what it was before."),
            "history": (f"{_AT}.history:history", "Show what changed, who did it, and why."),
        },
    ),
    (
        "Features",
        {"features": (f"{_AT}.features:features", "Define, fill and read features.")},
    ),
    (
        "Ask and look",
        {
            "predict": (f"{_AT}.predict:predict", "Ask a deployment."),
            "bench": (f"{_AT}.bench:bench", "Measure how fast a deployment answers here."),
            "trace": (f"{_AT}.trace:trace", "Show where requests spent their time."),
            "plugins": (f"{_AT}.plugins:plugins", "See, check and begin plugins."),
        },
    ),
)


@click.group(
    cls=LazyGroup,
    sections=SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Every command takes --json. Exit status: 0 done, 1 it failed (or a gate did), 2 wrong usage.",
)
@click.version_option(package_name="treadle", message="%(prog)s %(version)s")
def main() -> None:
    """Treadle puts machine-learning models into production behind gRPC.

    Begin with `treadle demo`, or with `treadle up`.
    """


if __name__ == "__main__":
    main(prog_name="treadle")
