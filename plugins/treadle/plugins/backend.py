"""The model-backend kind: how models of one framework are stored and run.

A backend holds no state of its own. Everything a loaded model needs lies in its folder and its `ModelSource`.
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
    """A stored model, its files already checked against their digests."""

    folder: Path
    """Read-only to the backend."""
    signature: Signature
    options: Mapping[str, str]
    threads: int
    """Threads that one `predict` may use, 1 or more."""


@dataclass(frozen=True)
class Example:
    """A small trained model of a backend, to try the backend on."""

    model: Any
    sample: Tensors
    """Real inputs: three rows or more, not all alike."""
    expected: Tensors
    """What the model itself, without Treadle, answers to them: some or all of the outputs."""


class LoadedModel(ABC):
    """A model in memory. One thread calls it at a time; mostly the one that loaded it."""

    bounded: ClassVar[bool] = False
    """Whether `predict` takes a time that depends on shapes alone: it runs no code of others, waits for nothing, and no
    value can make it go on for ever. Quick batches of such a model may run on the service's event loop."""

    @abstractmethod
    def predict(self, inputs: Tensors) -> Tensors:
        """All outputs of the signature for N rows.

        `inputs` have passed `Signature.check_inputs`; they may be read-only and must not be changed. Row i of the
        answer depends on row i of the inputs alone: rows of many requests share one call. Classifiers give
        "probability" [N, classes] and "label" [N]; regressors give "prediction" [N]. Raises InvalidInput for
        inputs that the model cannot take; whatever else it raises counts as a fault of the model.
        """

    def close(self) -> None:  # noqa: B027 - most models hold nothing that needs closing
        """Gives back memory and threads. May be called more than once."""


class ModelBackend(ABC):
    """Saves and loads the models of one framework."""

    name: ClassVar[str]
    """What manifests call it: [a-z0-9][a-z0-9_-]*."""
    options: ClassVar[Mapping[str, str]] = {}
    """Every option that a manifest may set, with a line of help. Anything else is an error."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Modules imported only when a model is saved or loaded: `treadle plugins list` tells which are missing."""

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
        cannot be read. May take its time, but must end: the inference service gives up on it after its limit."""

    def inferred_options(self, model: Any) -> Mapping[str, str]:
        """Options that `save_model` adds to the manifest for this model."""
        return {}

    def to_onnx(self, model: Any, sample: Tensors, source: ModelSource) -> bytes:
        """`model` as an ONNX model with the inputs and outputs of `source.signature`: their names, dtypes, shapes.

        `sample` holds real inputs, one row or more; `source` is what `load` would get. `save_model` asks for this form
        and keeps it beside the original, to serve in its place, only where it answers alike and faster. Must leave
        `model` as it is. Raises NotCompiled, with the reason, where there is no such form.
        """
        raise NotCompiled(f"models of backend {self.name!r} have no ONNX form")

    def example(self) -> Example | None:
        """What `treadle plugins check` and the conformance kit try the backend on; None if there is none."""
        return None

    def check_options(self, options: Mapping[str, str]) -> None:
        """Raises InvalidInput, naming every option that this backend does not have."""
        check_options(f"backend {self.name!r}", self.options, options)
