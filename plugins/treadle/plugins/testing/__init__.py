"""The conformance kit: inherit a contract, say what is yours, get the tests (needs pytest)::

    from treadle.plugins.testing import BackendContract

    class TestCentroid(BackendContract):
        def backend(self): return CentroidBackend()  # it has an example(), or override these as well:
        def model(self): return fit(ROWS, LABELS)
        def sample(self): return {"features": ROWS}
        def expected(self, model, inputs): return {"label": model.predict(inputs["features"])}

The built-in plugins pass the same tests. What no test can show, the contract demands all the same: `load` and `predict`
end (the inference service gives up on one that hangs, and keeps the thread), and messages hold no values.
"""

from treadle.plugins.testing._backend import BackendContract
from treadle.plugins.testing._metric import MetricContract
from treadle.plugins.testing._store import OnlineStoreContract

__all__ = ["BackendContract", "MetricContract", "OnlineStoreContract"]
