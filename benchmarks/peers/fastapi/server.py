"""FastAPI as people write it by hand: one async handler, orjson, uvloop and httptools, one process."""

import numpy as np
import orjson
import shared_model
import uvicorn
from fastapi import FastAPI, Request, Response

app = FastAPI()
predict = shared_model.load()


@app.post("/predict")
async def answer(request: Request) -> Response:
    body = orjson.loads(await request.body())
    rows = np.array(body["features"], dtype=np.float32)
    answers = orjson.dumps({"outputs": predict(rows)}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(answers, media_type="application/json")


uvicorn.run(app, host=shared_model.HOST, port=shared_model.PORT, log_level="warning", access_log=False)
