"""Plugins: model backends, online stores and metrics, from Treadle itself and from anyone else.

A plugin is one module, found through the entry-point group ``treadle``::

    [project.entry-points.treadle]
    centroid = "treadle_centroid"

    # treadle_centroid.py
    from treadle.plugins.hookspecs import RegisterBackend, hookimpl

    @hookimpl
    def treadle_model_backends(register: RegisterBackend) -> None:
        register(CentroidBackend())

``treadle plugins new NAME`` writes such a project whole, with tests that inherit the conformance kit
(`treadle.plugins.testing`). The built-in backends take the same road: nothing here names them.

Where to look: `backend`, `stores`, `metrics` are the kinds; `spec` the hooks; `manager` finds and hosts
plugins; `tensors` says what goes into a model and what comes out; `packaging` writes and reads model folders.
"""
