"""Finding and hosting plugins: laziness, faults, clashes, blocking."""

import sys
from collections.abc import Callable
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from treadle.core.errors import AlreadyExists, NotFound
from treadle.plugins import hookspecs as spec
from treadle.plugins.backend import LoadedModel, ModelBackend, ModelSource
from treadle.plugins.hookspecs import hookimpl
from treadle.plugins.manager import Plugins
from treadle.plugins.metrics import Metric
from treadle.plugins.stores import OnlineStore, OnlineStoreKind
from treadle.plugins.tensors import Array, Tensors

from ..conftest import modules_after

BUILT_INS = ["lightgbm", "onnx", "python", "sklearn", "torch", "xgboost"]


class Nothing(ModelBackend):
    name = "nothing"

    def can_save(self, model: Any) -> bool:
        return False

    def save(self, model: Any, folder: Path, sample: Tensors) -> None:
        raise NotImplementedError

    def load(self, source: ModelSource) -> LoadedModel:
        raise NotImplementedError


class Profit(Metric):
    name = "nothing.profit"
    tasks = ("binary",)
    higher_is_better = True

    def score(self, labels: Array, scores: Array) -> float:
        return float(np.mean(labels * scores))


class Nowhere(OnlineStoreKind):
    name = "nothing"

    def open(self, folder: Path, options: Any) -> OnlineStore:
        raise NotImplementedError


def plugin(**hooks: Callable[..., None]) -> Any:
    """A plugin as an object with the given hooks."""
    return SimpleNamespace(**{name: hookimpl(hook) for name, hook in hooks.items()})


def registers(*things: Any) -> Callable[..., None]:
    def hook(register: Any) -> None:
        for thing in things:
            register(thing)

    return hook


def state_of(module: Any, name: str = "nothing") -> tuple[str, str]:
    (info,) = Plugins.load(installed=(), modules={name: module}).info()
    return info.state, info.reason


def point(tmp_path: Path, name: str, source: str, distribution: str = "some-plugin", extras: str = "") -> EntryPoint:
    """An installed plugin whose module has the given source."""
    site = tmp_path / distribution
    info = site / f"{distribution}-1.2.dist-info"
    info.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n{extras}"
    (info / "METADATA").write_text(metadata)
    module = f"plugin_{distribution.replace('-', '_')}"
    (site / f"{module}.py").write_text(source)
    (info / "entry_points.txt").write_text(f"[treadle]\n{name} = {module}\n")
    sys.path.insert(0, str(site))
    (found,) = Distribution.at(info).entry_points
    return found


@pytest.fixture(autouse=True)
def restored_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_built_ins_are_found_like_any_plugin() -> None:
    infos = {info.name: info for info in Plugins.load().info()}
    for name in BUILT_INS:
        assert infos[name].state == "ok", infos[name].reason
        assert infos[name].distribution == "treadle"
        assert infos[name].version
        assert infos[name].provides == (f"backend {name}",)
        assert Plugins.load().backend(name).name == name


@pytest.mark.slow
def test_looking_imports_nothing_heavy() -> None:
    code = "from treadle.plugins.manager import Plugins; p = Plugins.load(); p.info(); p.backend('torch')"
    heavy = {"torch", "sklearn", "skops", "xgboost", "lightgbm", "onnxruntime", "pandas"}
    assert not modules_after(code) & heavy


def test_asking_for_one_imports_that_one_alone(tmp_path: Path) -> None:
    bystander = point(tmp_path, "bystander", "raise SystemExit('imported')", "by-stander")
    wanted = point(tmp_path, "wanted", "import sys", "wan-ted")
    plugins = Plugins.load(installed=[bystander, wanted], modules={})
    with pytest.raises(NotFound, match="registers nothing"):
        plugins.backend("wanted")
    assert "plugin_wan_ted" in sys.modules
    assert "plugin_by_stander" not in sys.modules


def test_hook_treadle_model_backends() -> None:
    plugins = Plugins.load(installed=(), modules={"nothing": plugin(treadle_model_backends=registers(Nothing()))})
    assert isinstance(plugins.backend("nothing"), Nothing)
    assert [backend.name for backend in plugins.backends()] == ["nothing"]


def test_hook_treadle_online_stores() -> None:
    plugins = Plugins.load(installed=(), modules={"nothing": plugin(treadle_online_stores=registers(Nowhere()))})
    assert isinstance(plugins.online_store("nothing"), Nowhere)
    with pytest.raises(NotFound, match="has no model backend 'nothing'; it has: none"):
        plugins.backend("nothing")


def test_hook_treadle_metrics() -> None:
    plugins = Plugins.load(installed=(), modules={"nothing": plugin(treadle_metrics=registers(Profit()))})
    assert list(plugins.metrics()) == ["nothing.profit"]
    assert plugins.info()[0].provides == ("metric nothing.profit",)


def test_every_hook_has_a_test() -> None:
    hooks = {name for name in vars(spec) if name.startswith("treadle_")}
    assert hooks == {name.removeprefix("test_hook_") for name in globals() if name.startswith("test_hook_")}


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(NotFound, match=r"no plugin gives the model backend 'sklaern'; installed plugins: .*sklearn"):
        Plugins.load().backend("sklaern")


def test_blocked_plugins_are_not_imported(tmp_path: Path) -> None:
    bad = point(tmp_path, "bad", "raise SystemExit('imported')", "bad-blocked")
    plugins = Plugins.load(installed=[bad], blocked=["bad"])
    assert [(info.state, info.provides) for info in plugins.info()] == [("blocked", ())]
    with pytest.raises(NotFound, match="on the list of blocked plugins"):
        plugins.backend("bad")
    assert "plugin_bad_blocked" not in sys.modules


def test_only_enabled_plugins_are_there() -> None:
    assert [info.name for info in Plugins.load(enabled=["python", "onnx"]).info()] == ["onnx", "python"]


@pytest.mark.parametrize("setting", ["enabled", "blocked"])
def test_settings_that_name_no_plugin_are_an_error(setting: str) -> None:
    with pytest.raises(NotFound, match="no plugin 'typo' is installed"):
        Plugins.load(**{setting: ["typo"]})  # type: ignore[arg-type]  # both take names


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise RuntimeError('broken driver')", "importing it raised RuntimeError: broken driver"),
        ("import sys; sys.exit(3)", "importing it raised SystemExit: 3"),
        ("import no_such_library", "No module named 'no_such_library'; install what faulty-plugin needs"),
        ("def broken(:", "importing it raised SyntaxError"),
    ],
)
def test_a_plugin_that_cannot_be_imported_harms_no_other(tmp_path: Path, source: str, words: str) -> None:
    bad = point(tmp_path, "bad", source, "faulty-plugin")
    sys.modules.pop("plugin_faulty_plugin", None)
    good = plugin(treadle_model_backends=registers(Nothing()))
    plugins = Plugins.load(installed=[bad], modules={"nothing": good})
    assert plugins.backend("nothing").name == "nothing"
    assert [backend.name for backend in plugins.backends()] == ["nothing"]
    with pytest.raises(NotFound) as caught:
        plugins.backend("bad")
    assert words in caught.value.message
    bad_info = plugins.info()[0]
    assert (bad_info.name, bad_info.distribution, bad_info.version) == ("bad", "faulty-plugin", "1.2")
    assert bad_info.state == "error"


def test_what_is_missing_is_named_with_the_extra_to_install(tmp_path: Path) -> None:
    source = (
        "from treadle.plugins.hookspecs import hookimpl\n"
        "from treadle.plugins.backends.onnx import OnnxBackend\n"
        "class Other(OnnxBackend):\n    name = 'other'\n    requires = ('no_such_runtime',)\n"
        "@hookimpl\ndef treadle_model_backends(register): register(Other())\n"
    )
    found = point(tmp_path, "other", source, "other-runtime", "Provides-Extra: other\n")
    plugins = Plugins.load(installed=[found])
    assert plugins.info()[0].state == "missing"
    with pytest.raises(NotFound, match=r"no_such_runtime not installed; pip install 'other-runtime\[other\]'"):
        plugins.backend("other")


def test_two_distributions_with_one_name_are_both_named(tmp_path: Path) -> None:
    points = [point(tmp_path, "same", "", distribution) for distribution in ("first-one", "second-one", "third-one")]
    plugins = Plugins.load(installed=points)
    with pytest.raises(NotFound, match="first-one and second-one and third-one both claim the name 'same'"):
        plugins.backend("same")


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (plugin(treadle_model_backend=registers(Nothing())), "treadle_model_backend"),  # misspelt
        (SimpleNamespace(treadle_model_backends=registers(Nothing())), "registers nothing; is @hookimpl above"),
        (plugin(treadle_model_backends=lambda registrar: None), "registrar"),  # an argument that the spec lacks
        (plugin(treadle_model_backends=registers(Nothing)), "registers a class Nothing; an instance of ModelBackend"),
        (plugin(treadle_model_backends=registers(Profit())), "an instance of ModelBackend is wanted"),
        (plugin(treadle_model_backends=registers(Nothing(), Nothing())), "'nothing' twice"),
        (plugin(treadle_model_backends=registers(object())), "registers a object"),
    ],
)
def test_wrong_plugins_say_what_is_wrong(module: Any, words: str) -> None:
    state, reason = state_of(module)
    assert state == "error"
    assert words in reason


def test_a_hook_that_raises_is_told() -> None:
    def hook(register: Any) -> None:
        raise ZeroDivisionError("no licence")

    assert state_of(plugin(treadle_metrics=hook)) == ("error", "a hook raised ZeroDivisionError: no licence")


def test_a_plugin_owns_its_name_only() -> None:
    state, reason = state_of(plugin(treadle_model_backends=registers(Nothing())), name="other")
    assert state == "error"
    assert "registers ModelBackend 'nothing', but owns 'other'" in reason


def test_a_module_cannot_take_the_name_of_an_installed_plugin() -> None:
    with pytest.raises(AlreadyExists, match="plugin 'onnx' is also installed by treadle"):
        Plugins.load(modules={"onnx": plugin(treadle_model_backends=registers(Nothing()))})


def test_threads_may_share_it() -> None:
    from concurrent.futures import ThreadPoolExecutor

    plugins = Plugins.load()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: plugins.backend("python"), range(32)))
    assert len({id(backend) for backend in found}) == 1
