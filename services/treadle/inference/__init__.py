"""The inference service: loads the versions that deployments ask for, and runs them in batches."""
