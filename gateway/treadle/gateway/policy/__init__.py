"""Deployments: followed from the registry, kept on disk, applied when their versions are ready."""
