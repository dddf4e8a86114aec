"""The Python client of a Treadle mesh: `AsyncClient`, and `Client` for code that is not async.

from treadle.client import Client

with Client() as treadle:
    treadle.predict("flight-delay", {"tail_number": ["N14228"]}, {"distance": [1400.0]})
"""

from treadle.client.aio import AsyncClient
from treadle.client.blocking import Client
from treadle.client.deployments import Fallback
from treadle.client.evaluation import Recorded
from treadle.client.features import Pushed
from treadle.client.inference import ModelListing
from treadle.client.predictions import Answer, Ask, FeatureProvenance, Prediction
from treadle.client.tables import Feature
from treadle.client.uploads import UploadProgress
from treadle.rpc.client.channel import Tls

__all__ = [
    "Answer",
    "Ask",
    "AsyncClient",
    "Client",
    "Fallback",
    "Feature",
    "FeatureProvenance",
    "ModelListing",
    "Prediction",
    "Pushed",
    "Recorded",
    "Tls",
    "UploadProgress",
]
