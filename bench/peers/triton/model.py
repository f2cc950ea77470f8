"""Triton's Python backend: the requests that its dynamic batcher puts together are one run."""
import os
import sys

sys.path.insert(0, os.environ["SITE_PACKAGES"])

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        rows = [pb_utils.get_input_tensor_by_name(request, "features").as_numpy() for request in requests]
        (scores,) = self.session.run(["probability"], {"features": np.concatenate(rows)})
        responses, start = [], 0
        for part in rows:
            end = start + len(part)
            output = pb_utils.Tensor("probability", scores[start:end])
            responses.append(pb_utils.InferenceResponse(output_tensors=[output]))
            start = end
        return responses
