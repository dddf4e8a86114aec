"""What goes through the pipeline: requests, batches of them, their features, and their results."""
