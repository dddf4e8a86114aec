"""Plain grpc.aio that calls `model.predict` for each request."""

import oip_server
import shared_model

oip_server.run(shared_model.load())
