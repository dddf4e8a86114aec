"""The documentation says what the code does: commands parse, snippets run, links resolve, tables are up to date."""

import ast
import difflib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from treadle.cli import deployfile
from treadle.cli.main import main
from treadle.evaluation.offline import gate_policy as policy_file
from treadle.evaluation.offline.metrics import Task, metrics_for
from treadle.features.values import FeatureStatus
from treadle.mesh.services import SERVICES
from treadle.plugins import hookspecs as spec
from treadle.plugins.authoring.new import new_plugin

from .conftest import module_of_file

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("examples/*/README.md")))
}
GUIDES = {name: text for name, text in PAGES.items() if not name.startswith("docs/adr/")}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\n]+\]\(([^)\s]+)\)")
FILE_NAME = re.compile(r"# ([\w-]+\.\w+)\n")


TABLES = module_of_file(ROOT / "docs" / "tables.py")


def blocks(page, language):
    """The fenced blocks of a page in one language."""
    return [text for kind, text in FENCE.findall(PAGES[page]) if kind == language]


def named_files(page, language):
    """Blocks that begin with `# NAME`, by name."""
    return {name[1]: text for text in blocks(page, language) if (name := FILE_NAME.match(text))}


def shown_commands():
    """(page, command line, whether it must be complete) for each `treadle …` that a guide shows."""
    for page, text in GUIDES.items():
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("treadle "):
                    yield page, line, True
        prose = FENCE.sub("", text)
        for line in re.findall(r"`(treadle [^`]+)`", prose):
            yield page, " ".join(line.split()), False


def leaves(command, path=()):
    """Every command below `command`, by the words that name it."""
    if not isinstance(command, click.Group):
        yield " ".join(path), command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        yield from leaves(command.get_command(context, name), (*path, name))


COMMANDS = dict(leaves(main))


def parse(words, *, complete):
    """Parses a command line as the program would, and runs nothing. An incomplete one may leave out arguments."""
    command: click.Command = main
    context = click.Context(main, info_name="treadle")
    while isinstance(command, click.Group):
        if not words:
            return
        name, *words = words
        found = command.get_command(context, name)
        if found is None:
            raise click.UsageError(f"no command {name!r}")
        command, context = found, click.Context(found, info_name=name, parent=context)
    if words or complete:
        try:
            command.make_context(context.info_name, list(words), resilient_parsing=not complete)
        except click.exceptions.Exit:  # --help
            return
        if not complete:  # resilient parsing lets unknown options pass
            known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
            unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] not in known]
            if unknown:
                raise click.UsageError(f"no option {unknown[0]}")


@pytest.mark.parametrize(("page", "line", "complete"), list(shown_commands()))
def test_a_command_parses(page, line, complete, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line, comments=True)[1:]
    try:
        parse(words, complete=complete)
    except click.ClickException as error:
        pytest.fail(f"{page}: {line}: {error.format_message()}")


@pytest.mark.parametrize(
    "wrong", ["treadle trace --lastt", "treadle rolback x", "treadle rollback", "treadle up --home"]
)
def test_a_wrong_command_is_noticed(wrong):
    with pytest.raises(click.ClickException):
        parse(shlex.split(wrong)[1:], complete=True)


def test_a_wrong_option_in_prose_is_noticed():
    with pytest.raises(click.ClickException):
        parse(["trace", "--lastt"], complete=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_mentioned(name):
    assert any(re.search(rf"treadle {name}\b", text) for text in GUIDES.values()), f"no guide mentions treadle {name}"


def test_every_hook_is_mentioned():
    for hook in (name for name in vars(spec) if name.startswith(f"{spec.GROUP}_")):
        assert f"`{hook}`" in GUIDES["docs/plugins.md"]


def test_every_variable_of_a_command_is_mentioned():
    variables = {each.envvar for command in COMMANDS.values() for each in command.params if each.envvar}
    missing = {name for name in variables if not any(f"`{name}`" in text for text in GUIDES.values())}
    assert not missing


def test_every_metric_of_an_evaluation_is_mentioned():
    for task in Task:
        for name in metrics_for(task):
            assert f"`{name}`" in GUIDES["docs/evaluation.md"], name


def test_every_key_of_a_gate_and_of_a_deployment_is_shown():
    for key in (*policy_file._POLICY_KEYS, *policy_file._THRESHOLD_KEYS, *deployfile._KEYS, *deployfile._STEP_KEYS):
        assert re.search(rf"\b{key}\b", GUIDES["docs/evaluation.md"]), key


def test_every_status_of_a_feature_is_explained():
    for status in FeatureStatus:
        assert f"\n| {status.name} | " in GUIDES["docs/features.md"]


def test_every_service_may_be_down():
    told = GUIDES["docs/operations.md"].partition("## When a service is down")[2].partition("\n## ")[0]
    for name in SERVICES:
        assert f"\n| {name} | " in told


def test_a_new_plugin_has_the_files_of_the_guide(tmp_path):
    written = {str(path.relative_to(tmp_path)) for path in new_plugin("nearest", tmp_path)}
    table = GUIDES["docs/plugins.md"].partition("| file | what it is |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) == written


def test_tables_are_what_the_code_says():
    now = PAGES["docs/operations.md"]
    wanted = TABLES.with_tables(now)
    drift = "\n".join(difflib.unified_diff(now.splitlines(), wanted.splitlines(), "operations.md", "the code", n=0))
    assert now == wanted, f"run python docs/tables.py\n{drift}"
    assert set(re.findall(r"<!-- begin (\w+) -->", now)) == set(TABLES.TABLES)


def test_every_setting_says_what_it_is():
    for prefix, settings in TABLES.settings_classes().items():
        silent = [field for field, text in TABLES.field_docs(settings).items() if not text]
        assert not silent, f"{prefix}: a string is wanted under {', '.join(silent)}"


def test_variables_that_guides_name_exist():
    known = {
        f"{prefix}{field}".upper()
        for prefix, settings in TABLES.settings_classes().items()
        for field in TABLES.field_docs(settings)
    }
    known |= {each.envvar for command in COMMANDS.values() for each in command.params if each.envvar}
    for page, text in GUIDES.items():
        named = set(re.findall(r"\bTREADLE_[A-Z_]*[A-Z]\b", text))
        unknown = {name for name in named - known if not name.startswith("TREADLE_PEER")}
        assert not unknown, f"{page} names {unknown}"


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_resolve(page):
    for link in LINK.findall(FENCE.sub("", PAGES[page])):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), f"{page}: {link} leads nowhere"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page}: {link}: no such heading"


def test_every_decision_is_listed():
    listed = set(LINK.findall(PAGES["docs/adr/README.md"]))
    assert listed == {path.name for path in (ROOT / "docs" / "adr").glob("[0-9]*.md")}


def test_every_guide_is_reachable_from_the_readme():
    linked = set(LINK.findall(PAGES["README.md"]))
    assert {name for name in GUIDES if name.startswith("docs/")} <= linked


@pytest.mark.parametrize("page", GUIDES)
def test_python_compiles(page):
    for text in blocks(page, "python"):
        compile(text, page, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)


@pytest.mark.parametrize("page", PAGES)
def test_the_style(page):
    text = PAGES[page]
    assert "/home/" not in text
    assert text.count("—") <= 2


def in_folder(folder, *command):
    """Runs a command where the snippets lie, in an environment that would find them installed."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def run_snippets(page, folder):
    """Writes the blocks that are files, then runs the others in order, as one program."""
    files = named_files(page, "python")
    for name, text in files.items():
        (folder / name).write_text(text)
    program = "\n".join(text for text in blocks(page, "python") if text not in files.values())
    in_folder(folder, sys.executable, "-W", "error", "-c", program)


def install(folder, name, module, entry_point=""):
    """What pip writes for a distribution with this entry point."""
    about = folder / f"treadle_{name}-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: treadle-{name}\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[treadle]\n{entry_point or name} = {module}\n")


@pytest.fixture(scope="module")
def plugin_author(tmp_path_factory):
    """The folder of someone who typed off docs/plugins.md, all three plugins installed."""
    folder = tmp_path_factory.mktemp("author")
    for name in ("linear", "hits", "memory"):
        install(folder, name, f"treadle_{name}")
    run_snippets("docs/plugins.md", folder)
    return folder


@pytest.mark.slow
def test_the_plugins_pass_the_kit(plugin_author):
    told = in_folder(plugin_author, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_contract.py")
    assert " passed" in told


@pytest.mark.slow
def test_the_plugins_are_listed(plugin_author):
    told = json.loads(in_folder(plugin_author, sys.executable, "-m", "treadle.cli.main", "plugins", "list", "--json"))
    mine = {each["name"]: (each["state"], each["provides"]) for each in told}
    assert mine["linear"] == ("ok", ["backend linear"])
    assert mine["hits"] == ("ok", ["metric hits.top_tenth"])
    assert mine["memory"] == ("ok", ["online store memory"])


def told_mistakes():
    """The messages of the table of mistakes in docs/plugins.md, as patterns: … stands for anything."""
    table = PAGES["docs/plugins.md"].partition("## Common mistakes")[2]
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    return [".*".join(re.escape(part) for part in message.split("…")) for message in messages]


@pytest.mark.slow
def test_mistakes_give_the_errors_that_the_guide_shows(plugin_author):
    program = """
import types

import numpy as np
from treadle.plugins import hookspecs as spec
from treadle.plugins.manager import Plugins
from treadle.plugins.packaging import save_model
from treadle_linear import LinearBackend, LinearModel, LoadedLinear


def plugin(thing, hook="treadle_model_backends", mark=spec.hookimpl):
    def register_it(self, register):
        register(thing)
    register_it.__name__ = hook
    return type("Plugin", (), {hook: mark(register_it)})()


def reason(module):
    print(Plugins.load(installed=(), modules={"linear": module}).info()[0].reason)


other = LinearBackend()
other.name = "other"
reason(plugin(LinearBackend(), mark=lambda function: function))
reason(plugin(LinearBackend(), hook="treadle_model_backend"))
reason(plugin(LinearBackend))
reason(plugin(other))

import sys
from importlib.metadata import EntryPoint

sys.path.append("twin")
print(*(each.reason for each in Plugins.load().info() if each.name == "linear"))
sys.path.remove("twin")
absent = [EntryPoint("linear", "no_such_library", "treadle")]
print(Plugins.load(installed=absent).info()[0].reason)

rows = np.arange(6.0).reshape(3, 2)
for model, options in ((object(), {}), (LinearModel([1.0, 2.0], 0.0), {"clipp": "1"})):
    try:
        save_model(model, "mistake", {"x": rows}, options=options)
    except Exception as error:
        print(error)

from treadle.plugins.tensors import Signature, TensorSpec

signature = Signature((TensorSpec("x", "FP64", (-1, 2)),), (TensorSpec("prediction", "FP64", (-1,)),))
try:
    signature.check_outputs({"prediction": rows[:, :1]}, 3)
except Exception as error:
    print(error)
"""
    (plugin_author / "twin").mkdir()
    install(plugin_author / "twin", "twin", "treadle_linear", entry_point="linear")
    told = in_folder(plugin_author, sys.executable, "-c", program)
    patterns = told_mistakes()
    assert len(patterns) == 9
    for pattern in patterns:
        assert re.search(pattern, told), f"nothing says {pattern!r}; it says:\n{told}"


@pytest.mark.slow
def test_the_features_of_the_guide_join_as_it_says(tmp_path):
    run_snippets("docs/features.md", tmp_path)


def test_the_gate_and_the_deployment_of_the_guide_are_read(tmp_path):
    files = named_files("docs/evaluation.md", "toml")
    policy = policy_file.parse_policy(files["gate.toml"])
    assert [each.metric for each in policy.thresholds] == ["roc_auc", "roc_auc", "log_loss"]
    (tmp_path / "order-risk.toml").write_text(files["order-risk.toml"])
    plan = deployfile.read_plan(tmp_path / "order-risk.toml")
    assert sum(plan.traffic.values()) == 100
    assert [step.name for step in plan.fallbacks] == ["rule", "guess"]
