"""The built-in model backends, each registered through the same entry points as anyone else's."""
