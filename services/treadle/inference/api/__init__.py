"""The inference service's entry points and their messages."""
