"""The model-backend kind: storing and running the models of one framework.

A backend is stateless. A loaded model needs only its folder and its `ModelSource`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from treadle.plugins.errors import NotCompiled
from treadle.plugins.options import check_options
from treadle.plugins.tensors import Signature, Tensors


@dataclass(frozen=True)
class ModelSource:
    """A stored model, whose files match their digests."""

    folder: Path
    """The folder of the model's files; backends must not write to it."""
    signature: Signature
    options: Mapping[str, str]
    threads: int
    """Threads that one `predict` may use, 1 or more."""


@dataclass(frozen=True)
class Example:
    """A small trained model of a backend, for its tests."""

    model: Any
    sample: Tensors
    """Real inputs: three rows or more, not all equal."""
    expected: Tensors
    """The outputs of the model itself, without Treadle, for `sample`: some or all of them."""


class LoadedModel(ABC):
    """A model in memory. One thread at a time calls it, mostly the one that loaded it."""

    bounded: ClassVar[bool] = False
    """Whether the time of `predict` depends only on the shapes of the inputs: it runs no code of users and never waits,
    and no value keeps it running. Short batches of such a model may run on the event loop of the service."""

    @abstractmethod
    def predict(self, inputs: Tensors) -> Tensors:
        """All outputs of the signature for N rows.

        `inputs` have passed `Signature.check_inputs`; they may be read-only and must not be changed. Row i of the
        outputs depends only on row i of the inputs: rows of many requests share one call. Classifiers give
        "probability" [N, classes] and "label" [N]; regressors give "prediction" [N]. Raises InvalidInput for
        inputs that the model cannot take; any other exception counts as a fault of the model.
        """

    def close(self) -> None:  # noqa: B027 - most models hold nothing that needs closing
        """Releases memory and threads. May be called more than once."""


class ModelBackend(ABC):
    """Saves and loads the models of one framework."""

    name: ClassVar[str]
    """The name of the backend in manifests: [a-z0-9][a-z0-9_-]*."""
    options: ClassVar[Mapping[str, str]] = {}
    """Every option that a manifest may set, with a line of help. Other options are an error."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Modules that are imported only to save or load a model; `treadle plugins list` shows the missing ones."""

    @abstractmethod
    def can_save(self, model: Any) -> bool:
        """Whether `model` is one of this framework's. Must not import the framework: look at the type's module."""

    @abstractmethod
    def save(self, model: Any, folder: Path, sample: Tensors) -> None:
        """Writes `model` into the existing, empty `folder`. Never a pickle.

        `sample` holds real inputs, one row or more. Raises InvalidInput if the model cannot be stored.
        """

    @abstractmethod
    def load(self, source: ModelSource) -> LoadedModel:
        """Raises InvalidInput for wrong options or a signature the model does not have, BackendFault if the files
        cannot be read. It may be slow but must return: the inference service abandons it after a time limit."""

    def inferred_options(self, model: Any) -> Mapping[str, str]:
        """Options that `save_model` adds to the manifest for this model."""
        return {}

    def to_onnx(self, model: Any, sample: Tensors, source: ModelSource) -> bytes:
        """`model` as an ONNX model with the inputs and outputs of `source.signature`: their names, dtypes, shapes.

        `sample` holds real inputs, one row or more; `source` is the argument of `load`. `save_model` keeps the result
        beside the original, to serve in its place, only if it is equivalent and faster. Must not change
        `model`. Raises NotCompiled, with the reason, if there is no ONNX form.
        """
        raise NotCompiled(f"models of backend {self.name!r} have no ONNX form")

    def example(self) -> Example | None:
        """A model with which `treadle plugins check` and the conformance kit test the backend; None without one."""
        return None

    def check_options(self, options: Mapping[str, str]) -> None:
        """Raises InvalidInput, naming every option that this backend does not have."""
        check_options(f"backend {self.name!r}", self.options, options)
