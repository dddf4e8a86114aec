"""The conformance kit: tests for plugins; inherit a contract and override its methods (needs pytest)::

    from treadle.plugins.testing import BackendContract

    class TestCentroid(BackendContract):
        def backend(self): return CentroidBackend()  # it has an example(), or override these as well:
        def model(self): return fit(ROWS, LABELS)
        def sample(self): return {"features": ROWS}
        def expected(self, model, inputs): return {"label": model.predict(inputs["features"])}

The built-in plugins pass the same tests. Two rules of the contract are not tested: `load` and `predict` must return
(the inference service abandons a call that hangs, and loses the thread), and error messages must hold no values.
"""

from treadle.plugins.testing._backend import BackendContract
from treadle.plugins.testing._metric import MetricContract
from treadle.plugins.testing._store import OnlineStoreContract

__all__ = ["BackendContract", "MetricContract", "OnlineStoreContract"]
