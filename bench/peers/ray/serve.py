"""Ray Serve with one replica and one proxy, on a Ray of its own."""
import os
import time

import numpy as np
import onnxruntime as ort
import orjson
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=1, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0})
class Scored:
    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    async def __call__(self, request: Request) -> Response:
        asked = orjson.loads(await request.body())["inputs"][0]
        rows = np.array(asked["data"], dtype=np.float32).reshape(asked["shape"])
        (scores,) = self.session.run(["probability"], {"features": rows})
        answer = {"outputs": [{"name": "probability", "shape": scores.shape, "datatype": "FP32", "data": scores.ravel()}]}
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


ray.init(num_cpus=1, include_dashboard=False, logging_level="warning", object_store_memory=200 << 20)
serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])}, logging_config={"enable_access_log": False})
serve.run(Scored.bind(), route_prefix="/predict")
while True:
    time.sleep(3600)
