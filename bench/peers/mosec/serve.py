"""mosec: its HTTP side is in Rust, one worker process runs batches of what waits. Run with `--port`."""
import os

import numpy as np
import onnxruntime as ort
import orjson
from mosec import Server, Worker


class Scored(Worker):
    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    def deserialize(self, data):
        return orjson.loads(data)

    def serialize(self, data):
        return orjson.dumps(data)

    def forward(self, batch):
        rows = np.array([asked["inputs"][0]["data"] for asked in batch], dtype=np.float32)
        (scores,) = self.session.run(["probability"], {"features": rows})
        return [
            {"outputs": [{"name": "probability", "shape": [1, 1], "datatype": "FP32", "data": row}]}
            for row in scores.tolist()
        ]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Scored, num=1, max_batch_size=16, max_wait_time=0)
    server.run()
