"""For authors of plugins: a project to start from, and a check against the conformance kit."""
