"""`CheckedModel`: callers of a plugin get outputs that match the signature, or an error of Treadle's error tree.

The inference service, `save_model` and the conformance kit load and run all models through it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from treadle.core.column import Column
from treadle.core.errors import InvalidInput, TreadleError
from treadle.plugins.backend import LoadedModel, ModelBackend, ModelSource
from treadle.plugins.compiling.comparing import Tolerance, compare
from treadle.plugins.errors import BackendFault
from treadle.plugins.tensors import Array, Signature, Tensors
from treadle.rpc.codec.columns import decode_all
from treadle.v1 import registry_pb2

SAMPLE_TOLERANCE = 1e-4
"""The allowed relative and absolute difference of the sample outputs from those recorded when the model was saved."""
REPRODUCTION_TOLERANCE = Tolerance(SAMPLE_TOLERANCE, SAMPLE_TOLERANCE)


@dataclass(frozen=True, slots=True)
class ManifestSample:
    """Sample rows, and the outputs of the model for them when it was saved. Both may be empty."""

    inputs: Tensors = field(default_factory=dict)
    outputs: Tensors = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: registry_pb2.Manifest) -> "ManifestSample":
        """The sample of a manifest, with NaN for null in floating columns. InvalidInput for malformed columns."""
        return cls(
            _arrays(decode_all(manifest.sample_inputs, "sample_inputs")),
            _arrays(decode_all(manifest.sample_outputs, "sample_outputs")),
        )


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model whose outputs are checked against its signature."""

    model: LoadedModel
    signature: Signature

    @classmethod
    def load(cls, backend: ModelBackend, source: ModelSource) -> "CheckedModel":
        """Loads a model. Errors of the tree pass through; any other exception becomes a BackendFault."""
        backend.check_options(source.options)
        try:
            return cls(backend.load(source), source.signature)
        except (TreadleError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a backend may raise anything; the text cannot hold values of a request
            raise BackendFault(f"loading raised {type(error).__name__}: {str(error)[:300]}") from error

    def predict(self, inputs: Tensors, rows: int) -> Tensors:
        """All outputs, `rows` rows each, for inputs that have passed `Signature.check_inputs`.

        InvalidInput if the model refuses them. BackendFault if it raises (without its text, which may hold values) or
        if its outputs do not match the signature. A signature without outputs, as in packaging, is not checked.
        """
        try:
            outputs = self.model.predict(inputs)
        except (InvalidInput, BackendFault, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise BackendFault(f"the model raised {type(error).__name__}") from error
        if type(outputs) is not dict and not isinstance(outputs, Mapping):
            raise BackendFault(f"the model answered a {type(outputs).__name__}, not arrays by name")
        if self.signature.outputs:
            self.signature.check_outputs(outputs, rows)
        return outputs

    def verify(self, sample: ManifestSample, tolerance: Tolerance = REPRODUCTION_TOLERANCE) -> None:
        """Warms the model up and checks that it still has the sample outputs. BackendFault if they differ.

        The first row is also predicted alone.
        """
        if not sample.inputs:
            return
        rows = self.signature.check_inputs(sample.inputs)
        self.predict({name: array[:1] for name, array in sample.inputs.items()}, 1)
        outputs = self.predict(sample.inputs, rows)
        for name, different in compare(outputs, sample.outputs, tolerance).wrong.items():
            raise BackendFault(
                f"output {name!r} differs from what the model answered when it was made in {different} of "
                f"{rows} sample rows (tolerance {tolerance}); its environment may have changed"
            )

    def close(self) -> None:
        """Releases the memory and threads of the model."""
        self.model.close()


def load_verified(
    backend: ModelBackend, source: ModelSource, sample: ManifestSample, tolerance: Tolerance = REPRODUCTION_TOLERANCE
) -> CheckedModel:
    """Loads a model and verifies it on the sample; a model that fails is closed. Raises as `load` and `verify`."""
    model = CheckedModel.load(backend, source)
    try:
        model.verify(sample, tolerance)
    except BaseException:
        model.close()
        raise
    return model


def _arrays(columns: Mapping[str, Column]) -> dict[str, Array]:
    return {name: _values(column) for name, column in columns.items()}


def _values(column: Column) -> Array:
    if column.nulls is None or not np.issubdtype(column.values.dtype, np.floating):
        return column.values
    return column.as_float(column.dtype)
