"""The inference service: loads the model versions that deployments name, and runs inference in batches."""
