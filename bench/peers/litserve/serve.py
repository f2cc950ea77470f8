"""LitServe with one worker and one API server, no batching, asynchronous nothing: its documented default."""
import os

import litserve
import numpy as np
import onnxruntime as ort


class Scored(litserve.LitAPI):
    def setup(self, device):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request):
        asked = request["inputs"][0]
        return np.array(asked["data"], dtype=np.float32).reshape(asked["shape"])

    def predict(self, rows):
        return self.session.run(["probability"], {"features": rows})[0]

    def encode_response(self, scores):
        return {"outputs": [{"name": "probability", "shape": list(scores.shape), "datatype": "FP32", "data": scores.ravel().tolist()}]}


if __name__ == "__main__":
    server = litserve.LitServer(Scored(), accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(
        host="127.0.0.1", port=int(os.environ["PORT"]), num_api_servers=1, log_level="error", generate_client_file=False
    )
