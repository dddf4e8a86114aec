"""The Python client of a Treadle mesh: `AsyncClient`, and the synchronous `Client`.

from treadle.client import Client

with Client() as treadle:
    treadle.predict("flight-delay", {"tail_number": ["N14228"]}, {"distance": [1400.0]})
"""

from treadle.client.aio import AsyncClient
from treadle.client.blocking import Client
from treadle.client.deployments import Fallback
from treadle.client.evaluation import RecordLabelsResult
from treadle.client.features import PushResult
from treadle.client.inference import ModelListing
from treadle.client.predictions import FeatureProvenance, Prediction, StreamRequest, StreamResult
from treadle.client.tables import Feature
from treadle.client.uploads import UploadProgress
from treadle.rpc.client.channel import Tls

__all__ = [
    "AsyncClient",
    "Client",
    "Fallback",
    "Feature",
    "FeatureProvenance",
    "ModelListing",
    "Prediction",
    "PushResult",
    "RecordLabelsResult",
    "StreamRequest",
    "StreamResult",
    "Tls",
    "UploadProgress",
]
