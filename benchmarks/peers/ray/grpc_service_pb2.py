"""Under the name that pickle looks for: Ray pickles requests, and tritonclient's messages claim to live here."""

from tritonclient.grpc.service_pb2 import *  # noqa: F403
