"""The services that the gateway calls."""
