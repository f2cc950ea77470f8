"""FastAPI + onnxruntime as its users write it for speed: one uvicorn worker on uvloop and httptools,
an async handler that runs the session in place, orjson both ways, no validation model."""
import os

import numpy as np
import onnxruntime as ort
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> Response:
    asked = orjson.loads(await request.body())["inputs"][0]
    rows = np.array(asked["data"], dtype=np.float32).reshape(asked["shape"])
    (scores,) = session.run(["probability"], {"features": rows})
    answer = {"outputs": [{"name": "probability", "shape": scores.shape, "datatype": "FP32", "data": scores.ravel()}]}
    return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), loop="uvloop", http="httptools", access_log=False)
