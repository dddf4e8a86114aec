"""The Open Inference Protocol v2 (`inference.GRPCInferenceService`), kept out of protobuf's default pool.

tritonclient, kserve and mlserver each register `inference.*` in the default pool, so that a process can import
only one of them. This package uses its own pool (`POOL`), and can be imported beside any of them.
"""

from treadle.oip._pool import DESCRIPTOR as DESCRIPTOR
from treadle.oip._pool import POOL as POOL
from treadle.oip.messages import *  # noqa: F403  # the package is these messages
from treadle.oip.service import METHODS as METHODS
from treadle.oip.service import SERVICE as SERVICE
from treadle.oip.service import GRPCInferenceServiceServicer as GRPCInferenceServiceServicer
from treadle.oip.service import GRPCInferenceServiceStub as GRPCInferenceServiceStub
from treadle.oip.service import add_GRPCInferenceServiceServicer_to_server as add_GRPCInferenceServiceServicer_to_server
