"""A gateway as a child process on free ports, and small models to serve."""
import os
import pathlib
import re
import signal
import subprocess
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BINARY = os.environ.get("LOOPGATE", "loopgate")


class Skipped(Exception):
    """What a test needs is not there."""


class Gateway:
    """`loopgate serve` with models from files; ends with the `with` block."""

    def __init__(self, models, config=""):
        self.folder = tempfile.TemporaryDirectory()
        folder = pathlib.Path(self.folder.name)
        (folder / "loopgate.toml").write_text(config)
        arguments = ["--config", str(folder / "loopgate.toml")]
        for name, model in models.items():
            path = pathlib.Path(model) if isinstance(model, (str, pathlib.Path)) else folder / f"{name}.onnx"
            if isinstance(model, bytes):
                path.write_bytes(model)
            arguments += ["--model", f"{name}={path}"]
        self.start(arguments)

    @classmethod
    def of_project(cls, files):
        """A gateway that serves the project of these files, by name."""
        gateway = cls.__new__(cls)
        gateway.folder = tempfile.TemporaryDirectory()
        folder = pathlib.Path(gateway.folder.name)
        (folder / "models").mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        gateway.start(["--project", str(folder)])
        return gateway

    def start(self, arguments):
        """Starts the program and waits until it serves."""
        folder = pathlib.Path(self.folder.name)
        for listener in ["http", "grpc", "admin", "metrics"]:
            arguments += [f"--{listener}", "127.0.0.1:0"]
        arguments = [BINARY, "serve", "--serving-threads", "1", *arguments]
        log = os.environ.get("LOOPGATE_LOG", "error")
        self.log = open(folder / "log", "w+")
        self.process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, "LOOPGATE_LOG": log},
        )
        line = self.process.stdout.readline()
        ports = dict(re.findall(r"(\w+)=(127\.0\.0\.1:\d+)", line))
        if not ports:
            self.__exit__()
            raise RuntimeError(f"the gateway did not start: {self.said}")
        self.http, self.grpc = ports["http"], ports["grpc"]
        self.admin = ports["admin"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.seek(0)
        self.said = self.log.read()
        self.log.close()
        self.folder.cleanup()


def model(nodes, inputs, outputs, initializers=(), opset=17):
    """The bytes of a graph; a value is `(name, element type, shape)`."""
    value = lambda spec: helper.make_tensor_value_info(*spec)
    graph = helper.make_graph(
        nodes, "g", [value(spec) for spec in inputs], [value(spec) for spec in outputs], list(initializers)
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made)
    return made.SerializeToString()


def affine():
    """x FP32 [-1, 4] → y [-1, 3] = x·w + b, and p [-1, 3], its softmax."""
    weights = np.arange(12, dtype=np.float32).reshape(4, 3) / 8
    bias = np.array([0.5, -0.5, 0.25], dtype=np.float32)
    return model(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["y"]),
            helper.make_node("Softmax", ["y"], ["p"], axis=1),
        ],
        [("x", TensorProto.FLOAT, ["N", 4])],
        [("y", TensorProto.FLOAT, ["N", 3]), ("p", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )


def affine_of(x):
    """What `affine` answers as `y`."""
    weights = np.arange(12, dtype=np.float32).reshape(4, 3) / 8
    return x @ weights + np.array([0.5, -0.5, 0.25], dtype=np.float32)


def identity(element):
    """x [-1] of that element type → y, unchanged."""
    return model(
        [helper.make_node("Identity", ["x"], ["y"])], [("x", element, ["N"])], [("y", element, ["N"])]
    )


def sum_of_two():
    """a FP32 [-1, 2], b INT64 [-1, 2] → c FP32 [-1, 2]."""
    return model(
        [
            helper.make_node("Cast", ["b"], ["bf"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["a", "bf"], ["c"]),
        ],
        [("a", TensorProto.FLOAT, ["N", 2]), ("b", TensorProto.INT64, ["N", 2])],
        [("c", TensorProto.FLOAT, ["N", 2])],
    )


def wide():
    """x FP16 [-1, -1] → y, unchanged."""
    return model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.FLOAT16, ["N", "M"])],
        [("y", TensorProto.FLOAT16, ["N", "M"])],
    )


SMALL_MODELS = {
    "affine": affine,
    "sum": sum_of_two,
    "text": lambda: identity(TensorProto.STRING),
    "half": lambda: identity(TensorProto.FLOAT16),
    "flag": lambda: identity(TensorProto.BOOL),
    "wide": wide,
    "long": lambda: identity(TensorProto.INT64),
}


def small_models():
    return {name: make() for name, make in SMALL_MODELS.items()}
