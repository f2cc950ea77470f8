"""BentoML 1.4 with one worker; run by `bentoml serve serve:Scored`."""
import os

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Scored:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    @bentoml.api
    async def predict(self, inputs: list) -> dict:
        asked = inputs[0]
        rows = np.array(asked["data"], dtype=np.float32).reshape(asked["shape"])
        (scores,) = self.session.run(["probability"], {"features": rows})
        return {"outputs": [{"name": "probability", "shape": list(scores.shape), "datatype": "FP32", "data": scores.ravel().tolist()}]}
