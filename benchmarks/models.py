"""The four models, trained once from scikit-learn's breast cancer rows: one file each that every server loads.

joblib files for scikit-learn and a state_dict for torch are what peers load; the folder beside them, written by
`save_model` from the same object, is what Treadle is pushed. All take FP32 rows of 30 features, [n, 30].
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FEATURES = 30
CHAIN_FEATURES = 11
SEED = 7
TITLES: Mapping[str, str] = {
    "lr": "logistic regression",
    "rf": "random forest, 100 trees",
    "gb": "gradient boosting",
    "mlp": "torch MLP",
}
INPUT = "features"
CHAIN = "chain"
"""Name of the model, and of the deployment, that reads features."""
VIEW = "measures"
FEATURE_SERVICE = "tumour_measures"
_PACKAGES = "packages"


@dataclass(frozen=True)
class Model:
    """A trained model, with rows and its own outputs for them."""

    name: str
    """lr, rf, gb, mlp."""
    file: Path
    """The file for peers: joblib, or a state_dict."""
    package: Path
    """The model folder for Treadle."""
    rows: Array
    """Real rows, FP32 [1024, 30]; requests are made of the first ones."""
    expected: Mapping[str, Array]
    """The model's own outputs for `rows`: "label" and "probability" of classifiers, "prediction" of the MLP."""


def prepare(folder: Path) -> dict[str, Model]:
    """The models, trained unless `folder` has them from the same library versions, and packaged by this Treadle."""
    stamp = folder / "made-with.json"
    versions = _versions()
    if not stamp.exists() or json.loads(stamp.read_text()) != versions:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _train_all(folder)
        stamp.write_text(json.dumps(versions))
    shutil.rmtree(folder / _PACKAGES, ignore_errors=True)
    for name in TITLES:
        _package(folder, name)
    _package_chain(folder)
    return {name: _read(folder, name) for name in TITLES}


def chain_package(folder: Path) -> Path:
    """A logistic regression of 11 features that the feature service looks up: the model of the whole chain."""
    return folder / _PACKAGES / CHAIN


def chain_expected(folder: Path) -> Mapping[str, Array]:
    """Its rows [1024, 11] as "rows", and its own answers to them."""
    return dict(np.load(folder / f"{CHAIN}.npz"))


def chain_columns() -> list[str]:
    """The names of its features in their view."""
    return [f"f{number:02d}" for number in range(CHAIN_FEATURES)]


def make_mlp() -> Any:
    """The torch model before training: 30 → 64 → 64 → 2, softmax. `peers/shared_model.py` builds the same."""
    from torch import nn

    return nn.Sequential(
        nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2), nn.Softmax(dim=1)
    )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("scikit-learn", "torch", "numpy", "joblib")} | {"format": "3"}


def _train_all(folder: Path) -> None:
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    data = load_breast_cancer()
    rows, classes = _standardized(data.data), data.target
    asked = np.resize(rows, (1024, FEATURES))
    narrow = np.ascontiguousarray(asked[:, :CHAIN_FEATURES])
    _save_sklearn(folder, "lr", LogisticRegression(max_iter=5000).fit(rows, classes), asked)
    _save_sklearn(folder, "rf", RandomForestClassifier(100, random_state=SEED).fit(rows, classes), asked)
    _save_sklearn(folder, "gb", GradientBoostingClassifier(random_state=SEED).fit(rows, classes), asked)
    _save_torch(folder, rows, classes, asked)
    _save_sklearn(folder, CHAIN, LogisticRegression(max_iter=5000).fit(rows[:, :CHAIN_FEATURES], classes), narrow)


def _standardized(rows: Array) -> Array:
    scaled: Array = ((rows - rows.mean(axis=0)) / rows.std(axis=0)).astype(np.float32)
    return scaled


def _save_sklearn(folder: Path, name: str, model: Any, asked: Array) -> None:
    import joblib  # type: ignore[import-untyped]  # it ships no types

    _forget_randomness(model)
    joblib.dump(model, folder / f"{name}.joblib")
    answers = {"label": model.predict(asked), "probability": model.predict_proba(asked)}
    np.savez(folder / f"{name}.npz", rows=asked, **answers)


def _forget_randomness(model: Any) -> None:
    """Removes the random generator of gradient boosting, which is not used again and which numpy 1 cannot read."""
    if vars(model).pop("_rng", None) is not None:
        for tree in model.estimators_.ravel():
            tree.random_state = None


def _save_torch(folder: Path, rows: Array, classes: Array, asked: Array) -> None:
    import torch

    torch.manual_seed(SEED)
    model = make_mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    inputs, wanted = torch.from_numpy(rows), torch.from_numpy(classes.astype(np.int64))
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.nll_loss(torch.log(model(inputs) + 1e-9), wanted).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.save(model.state_dict(), folder / "mlp.pt")
    with torch.inference_mode():
        np.savez(folder / "mlp.npz", rows=asked, prediction=model(torch.from_numpy(asked)).numpy())


def _package(folder: Path, name: str) -> None:
    from treadle.plugins.packaging import save_model

    model = _read(folder, name)
    save_model(_load(model), model.package, {INPUT: model.rows[:64]})


def _package_chain(folder: Path) -> None:
    from treadle.plugins.packaging import save_model

    model = _read(folder, CHAIN)
    columns = [f"{VIEW}__{name}" for name in chain_columns()]
    sample = {INPUT: model.rows[:64]}
    save_model(_load(model), model.package, sample, columns={INPUT: columns}, feature_service=FEATURE_SERVICE)


def _load(model: Model) -> Any:
    """The trained object, from the file that peers load too."""
    import joblib
    import torch

    if model.name != "mlp":
        return joblib.load(model.file)
    mlp = make_mlp()
    mlp.load_state_dict(torch.load(model.file, weights_only=True))
    return mlp.eval()


def _read(folder: Path, name: str) -> Model:
    stored = dict(np.load(folder / f"{name}.npz"))
    file = folder / (f"{name}.pt" if name == "mlp" else f"{name}.joblib")
    return Model(name, file, folder / _PACKAGES / name, stored.pop("rows"), stored)
