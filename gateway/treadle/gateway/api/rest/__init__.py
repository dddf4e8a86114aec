"""REST entry points: deployments, and the Open Inference Protocol over HTTP."""
