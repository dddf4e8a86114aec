"""Whatever a plugin does, what its callers see is outputs that keep the signature, or an error of the one tree.

The inference service, `save_model` and the conformance kit all load and run models through here.
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
"""Relative and absolute difference allowed between sample outputs now and when the model was made."""
AS_WHEN_MADE = Tolerance(SAMPLE_TOLERANCE, SAMPLE_TOLERANCE)


@dataclass(frozen=True, slots=True)
class Sample:
    """Real rows, and what the model answered to them when it was made. Both may be empty."""

    inputs: Tensors = field(default_factory=dict)
    outputs: Tensors = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: registry_pb2.Manifest) -> "Sample":
        """That of a manifest, null standing as NaN in floating columns. InvalidInput for malformed columns."""
        return cls(
            _arrays(decode_all(manifest.sample_inputs, "sample_inputs")),
            _arrays(decode_all(manifest.sample_outputs, "sample_outputs")),
        )


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model whose every answer is checked against its signature."""

    model: LoadedModel
    signature: Signature

    @classmethod
    def load(cls, backend: ModelBackend, source: ModelSource) -> "CheckedModel":
        """Loads and keeps the errors of the tree; BackendFault for whatever else the backend raises."""
        backend.check_options(source.options)
        try:
            return cls(backend.load(source), source.signature)
        except (TreadleError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a backend may raise anything; no request is at hand whose values it could tell
            raise BackendFault(f"loading raised {type(error).__name__}: {str(error)[:300]}") from error

    def predict(self, inputs: Tensors, rows: int) -> Tensors:
        """All outputs, `rows` rows each, for inputs that passed the check.

        InvalidInput if the model refuses them; BackendFault, without the text of foreign errors, which may hold
        values, if it broke its word. Outputs go unchecked while the signature has none: the model is being packaged.
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

    def prove(self, sample: Sample, tolerance: Tolerance = AS_WHEN_MADE) -> None:
        """Warm-up and proof in one: answers the sample as of old, its first row also alone. BackendFault if not."""
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
        """Gives back what the model holds."""
        self.model.close()


def load_proven(
    backend: ModelBackend, source: ModelSource, sample: Sample, tolerance: Tolerance = AS_WHEN_MADE
) -> CheckedModel:
    """A model that has just shown that it answers as it should; one that does not is closed again."""
    model = CheckedModel.load(backend, source)
    try:
        model.prove(sample, tolerance)
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
