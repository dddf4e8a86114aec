"""Plugins: model backends, online stores and metrics, built in or from other distributions.

A plugin is one module, found through the entry-point group ``treadle``::

    [project.entry-points.treadle]
    centroid = "treadle_centroid"

    # treadle_centroid.py
    from treadle.plugins.hookspecs import RegisterBackend, hookimpl

    @hookimpl
    def treadle_model_backends(register: RegisterBackend) -> None:
        register(CentroidBackend())

``treadle plugins new NAME`` writes a complete project with tests that inherit the conformance kit
(`treadle.plugins.testing`). The built-in backends are found by the same entry points.

Modules: `backend`, `stores` and `metrics` define the kinds of plugins, `hookspecs` the hooks; `manager` finds and loads
plugins; `tensors` defines signatures; `packaging` writes and reads model folders; `compiling` adds a faster form.
"""
