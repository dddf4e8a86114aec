"""`AsyncClient`: all services of a Treadle mesh, through the gateway's address."""

from treadle.client.deployments import Deployments
from treadle.client.evaluation import Evaluation
from treadle.client.features import Features
from treadle.client.inference import Inference
from treadle.client.models import Models
from treadle.client.predictions import Predictions


class AsyncClient(Predictions, Models, Deployments, Features, Evaluation, Inference):
    """A typed client of one mesh.

        async with AsyncClient("127.0.0.1:7700") as treadle:
            answer = await treadle.predict("flight-delay", {"tail_number": ["N14228"]}, {"distance": [1400.0]})
            answer["probability"]        # an array of N rows

    Arguments are those of `Connection`. Rows are numpy arrays; documents (model versions, deployments, reports) are
    messages of `treadle.v1`. Methods raise the errors of `treadle.core.errors`.
    """
