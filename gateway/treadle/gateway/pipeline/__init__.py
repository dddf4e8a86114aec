"""The one way of a prediction through the gateway."""
