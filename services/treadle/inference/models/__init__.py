"""The lifecycle of model versions: fetched, loaded, verified, served, unloaded."""
