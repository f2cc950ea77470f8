"""MLServer's custom runtime; parallel workers are off (`MLSERVER_PARALLEL_WORKERS=0`), which is faster on
one core than its pool."""
import os

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Scored(MLModel):
    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        (scores,) = self.session.run(["probability"], {"features": rows})
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output(name="probability", payload=scores)]
        )
