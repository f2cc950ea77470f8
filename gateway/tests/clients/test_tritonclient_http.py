"""tritonclient over HTTP: JSON and binary tensors, mixed, compressed, classified; server calls."""
import asyncio

import numpy as np
import tritonclient.http as http
import tritonclient.http.aio as http_aio
from tritonclient.utils import InferenceServerException

from gateway import affine, affine_of

X = np.array([[1, 2, 3, 4], [0.5, 0, -1, 2]], dtype=np.float32)


def tensor(name, values, datatype, binary):
    made = http.InferInput(name, values.shape, datatype)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def refused(call):
    try:
        call()
    except InferenceServerException as error:
        return error
    raise AssertionError("was not refused")


def test_health_and_metadata(gateway):
    client = http.InferenceServerClient(gateway.http)
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("affine") and not client.is_model_ready("none")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("affine")["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
    ]
    config = client.get_model_config("affine")
    assert config["max_batch_size"] > 0 and config["input"][0]["dims"] == [4]
    index = client.get_model_repository_index()
    assert {"name": "affine", "version": "1", "state": "READY", "reason": ""} in index
    assert refused(lambda: client.get_model_metadata("none")).status() in ("404", "StatusCode.NOT_FOUND")


def test_json_and_binary_tensors_are_answered_alike(gateway):
    client = http.InferenceServerClient(gateway.http)
    for binary_in in (True, False):
        for binary_out in (True, False):
            outputs = [http.InferRequestedOutput("y", binary_data=binary_out)]
            answer = client.infer("affine", [tensor("x", X, "FP32", binary_in)], outputs=outputs, request_id="7")
            np.testing.assert_allclose(answer.as_numpy("y"), affine_of(X), rtol=1e-6)
            assert answer.get_response()["id"] == "7" and answer.as_numpy("p") is None
    answer = client.infer("affine", [tensor("x", X, "FP32", True)])
    np.testing.assert_allclose(answer.as_numpy("p").sum(axis=1), [1, 1], rtol=1e-6)


def test_json_and_binary_tensors_mix_in_one_request(gateway):
    client = http.InferenceServerClient(gateway.http)
    a = np.array([[0.5, 1.5]], dtype=np.float32)
    b = np.array([[2**40, -3]], dtype=np.int64)
    for binary in ((True, False), (False, True)):
        inputs = [tensor("a", a, "FP32", binary[0]), tensor("b", b, "INT64", binary[1])]
        np.testing.assert_allclose(client.infer("sum", inputs).as_numpy("c"), a + b)


def test_bodies_may_be_compressed_both_ways(gateway):
    client = http.InferenceServerClient(gateway.http)
    many = np.zeros((4096, 4), dtype=np.float32)
    for coding in ("gzip", "deflate"):
        answer = client.infer(
            "affine",
            [tensor("x", many, "FP32", True)],
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
        )
        np.testing.assert_allclose(answer.as_numpy("y"), affine_of(many), rtol=1e-6)


def test_datatypes_come_back_as_they_went(gateway):
    client = http.InferenceServerClient(gateway.http)
    cases = [
        ("text", np.array(["a\\b\"", "ü😀", ""], dtype=np.object_), "BYTES", (True, False)),
        ("half", np.array([1, -0.5, 65504], dtype=np.float16), "FP16", (True,)),
        ("flag", np.array([True, False]), "BOOL", (True, False)),
        ("long", np.array([-(2**63), 2**63 - 1]), "INT64", (True, False)),
    ]
    for model, values, datatype, forms in cases:
        for binary in forms:
            outputs = [http.InferRequestedOutput("y", binary_data=binary)]
            answer = client.infer(model, [tensor("x", values, datatype, binary)], outputs=outputs)
            found = answer.as_numpy("y")
            if datatype == "BYTES":
                encode = lambda text: text if isinstance(text, bytes) else text.encode()
                assert [encode(t) for t in found] == [encode(t) for t in values], (model, binary)
            else:
                np.testing.assert_array_equal(found, values)


def test_outputs_may_be_classified(gateway):
    client = http.InferenceServerClient(gateway.http)
    for binary in (True, False):
        outputs = [http.InferRequestedOutput("p", binary_data=binary, class_count=2)]
        found = client.infer("affine", [tensor("x", X, "FP32", True)], outputs=outputs).as_numpy("p")
        assert found.shape == (2, 2)
        text = lambda value: value if isinstance(value, str) else value.decode()
        first = text(found[0][0]).split(":")
        assert int(first[1]) == int(np.argmax(affine_of(X)[0])), found


def test_statistics_count_rows_and_runs(gateway):
    client = http.InferenceServerClient(gateway.http)
    before = client.get_inference_statistics("affine")["model_stats"][0]
    client.infer("affine", [tensor("x", X, "FP32", True)])
    after = client.get_inference_statistics("affine")["model_stats"][0]
    assert after["inference_count"] == before["inference_count"] + 2
    assert after["execution_count"] == before["execution_count"] + 1
    assert after["inference_stats"]["success"]["count"] == before["inference_stats"]["success"]["count"] + 1


def test_what_is_wrong_is_told(gateway):
    client = http.InferenceServerClient(gateway.http)
    x = tensor("x", X, "FP32", True)
    assert "none" in refused(lambda: client.infer("none", [x])).message()
    assert "nope" in refused(lambda: client.infer("affine", [tensor("nope", X, "FP32", True)])).message()
    assert refused(lambda: client.infer("affine", [tensor("x", X[:, :3], "FP32", False)])).message()
    assert refused(lambda: client.infer("affine", [x], sequence_id=3)).message()


def test_priority_and_timeout_are_taken(gateway):
    client = http.InferenceServerClient(gateway.http)
    x = tensor("x", X, "FP32", True)
    answer = client.infer("affine", [x], priority=1, timeout=900_000, parameters={"own": 1})
    assert answer.as_numpy("y") is not None
    assert "deadline" in refused(lambda: client.infer("affine", [x], timeout=1)).message()


def test_models_are_loaded_and_unloaded(gateway):
    client = http.InferenceServerClient(gateway.http)
    name = "loaded_over_http"
    client.load_model(name, config='{"max_batch_size": 8}', files={"file:1/model.onnx": affine()})
    assert client.is_model_ready(name)
    found = client.infer(name, [tensor("x", X, "FP32", True)]).as_numpy("y")
    np.testing.assert_allclose(found, affine_of(X), rtol=1e-6)
    refused(lambda: client.load_model("broken", config="{}", files={"file:1/model.onnx": b"none"}))
    client.unload_model(name)
    assert not client.is_model_ready(name)


def test_calls_at_a_time(gateway):
    client = http.InferenceServerClient(gateway.http, concurrency=8)
    asked = [client.async_infer("affine", [tensor("x", X + k, "FP32", True)]) for k in range(64)]
    for k, answer in enumerate(asked):
        np.testing.assert_allclose(answer.get_result().as_numpy("y"), affine_of(X + k), rtol=1e-5)


def test_asyncio(gateway):
    async def ask():
        async with http_aio.InferenceServerClient(gateway.http) as client:
            assert await client.is_server_ready()
            ask = lambda k: client.infer("affine", [tensor("x", X + k, "FP32", k % 2 == 0)])
            for k, answer in enumerate(await asyncio.gather(*map(ask, range(32)))):
                np.testing.assert_allclose(answer.as_numpy("y"), affine_of(X + k), rtol=1e-5)

    asyncio.run(ask())
