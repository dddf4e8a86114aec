"""The client side of every RPC between services."""
