"""ONNX's own models of single operators through each wire, against the outputs that ONNX ships.

A model is counted once for each of HTTP with JSON, HTTP with binary tensors, and gRPC. FP16 and BF16
have no JSON form in the protocol; the gateway takes and writes them as numbers, and so they are
counted here. Models of sequences, optionals and types that the protocol lacks are not served.
"""
import json
import os
import pathlib
import re

import numpy as np
import onnx
import requests
import tritonclient.grpc as grpc
from onnx import TensorProto, numpy_helper
from tritonclient.grpc import service_pb2

from gateway import Gateway

FOLDER = pathlib.Path(os.environ["LOOPGATE_NODE_MODELS"])
# Models that one gateway serves.
SERVED = 40
WANTED = 1480
TYPES = {
    TensorProto.BOOL: "BOOL", TensorProto.UINT8: "UINT8", TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32", TensorProto.UINT64: "UINT64", TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16", TensorProto.INT32: "INT32", TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16", TensorProto.BFLOAT16: "BF16", TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64", TensorProto.STRING: "BYTES",
}
NUMBERS = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1",
    "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}


class NotServed(Exception):
    """The model or its data have no form in the protocol."""


class Case:
    """A model with its inputs and the outputs that are expected."""

    def __init__(self, folder):
        self.name, self.path = folder.name, folder / "model.onnx"
        graph = onnx.load(self.path).graph
        constants = {constant.name for constant in graph.initializer}
        inputs = [value for value in graph.input if value.name not in constants]
        self.inputs = self.read(folder, "input", inputs)
        self.outputs = self.read(folder, "output", graph.output)

    def read(self, folder, kind, values):
        tensors = {}
        for k, value in enumerate(values):
            element = value.type.tensor_type.elem_type
            if value.type.WhichOneof("value") != "tensor_type" or element not in TYPES:
                raise NotServed(f"{kind} {value.name} is no tensor of the protocol")
            data = (folder / "test_data_set_0" / f"{kind}_{k}.pb").read_bytes()
            array = numpy_helper.to_array(TensorProto.FromString(data))
            tensors[value.name] = (TYPES[element], array)
        return tensors


def text(value):
    return value if isinstance(value, bytes) else str(value).encode()


def raw(datatype, values):
    if datatype == "BYTES":
        return b"".join(len(t).to_bytes(4, "little") + t for t in map(text, values.flatten()))
    return np.ascontiguousarray(values).tobytes()


def from_raw(datatype, shape, data):
    if datatype == "BYTES":
        texts = []
        while data:
            length = int.from_bytes(data[:4], "little")
            texts.append(data[4:4 + length])
            data = data[4 + length:]
        return np.array(texts, dtype=np.object_).reshape(shape)
    if datatype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    return np.frombuffer(data, NUMBERS[datatype]).reshape(shape)


def described(name, datatype, values, **more):
    return {"name": name, "shape": list(values.shape), "datatype": datatype, **more}


def listed(datatype, values):
    if datatype == "BYTES":
        return [text(value).decode() for value in values.flatten()]
    if datatype == "BF16":
        values = values.astype(np.float32)
    return values.flatten().tolist()


def answered(reply, blob):
    """The outputs of an HTTP answer."""
    found = {}
    for output in reply["outputs"]:
        datatype, shape = output["datatype"], output["shape"]
        if "data" in output:
            if datatype == "BYTES":
                values = np.array([text(t) for t in output["data"]], dtype=np.object_)
            else:
                values = np.array(output["data"], NUMBERS.get(datatype, "<f4"))
            found[output["name"]] = values.reshape(shape)
        else:
            size = output["parameters"]["binary_data_size"]
            found[output["name"]], blob = from_raw(datatype, shape, blob[:size]), blob[size:]
    return found


def over_json(gateway, model, case):
    inputs = [described(n, d, v, data=listed(d, v)) for n, (d, v) in case.inputs.items()]
    url = f"http://{gateway.http}/v2/models/{model}/infer"
    reply = gateway.session.post(url, data=json.dumps({"inputs": inputs}).encode(), timeout=60)
    if reply.status_code != 200:
        raise RuntimeError(reply.text)
    return answered(json.loads(reply.content), b"")


def over_binary(gateway, model, case):
    blobs = [raw(d, v) for d, v in case.inputs.values()]
    inputs = [
        described(n, d, v, parameters={"binary_data_size": len(blob)})
        for (n, (d, v)), blob in zip(case.inputs.items(), blobs)
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    reply = gateway.session.post(
        f"http://{gateway.http}/v2/models/{model}/infer",
        data=head + b"".join(blobs),
        headers={"Inference-Header-Content-Length": str(len(head))},
        timeout=60,
    )
    if reply.status_code != 200:
        raise RuntimeError(reply.text)
    length = int(reply.headers.get("Inference-Header-Content-Length", len(reply.content)))
    return answered(json.loads(reply.content[:length]), reply.content[length:])


def over_grpc(gateway, model, case):
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, (datatype, values) in case.inputs.items():
        request.inputs.add(name=name, datatype=datatype, shape=values.shape)
        request.raw_input_contents.append(raw(datatype, values))
    reply = gateway.client._client_stub.ModelInfer(request, timeout=60)
    return {
        output.name: from_raw(output.datatype, list(output.shape), data)
        for output, data in zip(reply.outputs, reply.raw_output_contents)
    }


WIRES = {"json": over_json, "binary": over_binary, "grpc": over_grpc}


def check(case, found):
    for name, (datatype, expected) in case.outputs.items():
        values = found[name]
        assert list(values.shape) == list(expected.shape), f"{name}: shape {values.shape}"
        if datatype == "BYTES":
            assert [text(t) for t in values.flatten()] == [text(t) for t in expected.flatten()], name
        else:
            close = 1e-2 if datatype in ("FP16", "BF16") else 1e-3
            wide = lambda array: array.astype(np.float32) if datatype == "BF16" else array
            np.testing.assert_allclose(wide(values), wide(expected), rtol=close, atol=1e-5)


def serve(models):
    """A gateway of those models that it takes, and the names of the others."""
    refused = {}
    while models:
        try:
            return Gateway(models, "[serving]\ndeadline_ms = 30000"), refused
        except RuntimeError as error:
            named = re.search(r"model `(\w+)`", str(error))
            if not named or named[1] not in models:
                raise
            refused[named[1]] = str(error)
            models = {name: path for name, path in models.items() if name != named[1]}
    return None, refused


def test_onnx_node_models(_):
    cases, passed, problems, unserved = [], dict.fromkeys(WIRES, 0), [], 0
    folders = sorted(FOLDER.iterdir())
    for folder in folders:
        try:
            cases.append(Case(folder))
        except NotServed:
            unserved += 1
    for start in range(0, len(cases), SERVED):
        batch = {f"n{k}": case for k, case in enumerate(cases[start:start + SERVED])}
        gateway, refused = serve({name: case.path for name, case in batch.items()})
        unserved += len(refused)
        problems += [f"{batch[name].name}: not loaded: {why[-300:]}" for name, why in refused.items()]
        if not gateway:
            continue
        with gateway:
            gateway.session = requests.Session()
            gateway.client = grpc.InferenceServerClient(gateway.grpc)
            for name, case in batch.items():
                for wire, ask in WIRES.items():
                    if name in refused:
                        continue
                    try:
                        check(case, ask(gateway, name, case))
                        passed[wire] += 1
                    except Exception as error:
                        problems.append(f"{case.name}: {wire}: {str(error)[:300]}")
            gateway.client.close()
    report = os.environ.get("LOOPGATE_NODE_REPORT")
    if report:
        pathlib.Path(report).write_text("\n".join(problems) + "\n")
    counts = ", ".join(f"{wire} {count}" for wire, count in passed.items())
    note = f"{counts} of {len(folders)} models; {unserved} not served"
    assert min(passed.values()) >= WANTED, note
    return note
