"""The lifecycle of model versions: download, load, verification, serving, unload."""
