"""tritonclient over gRPC: unary, streamed, compressed; server calls; keep-alive."""
import asyncio
import queue
import time

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
from tritonclient.utils import InferenceServerException

from gateway import affine, affine_of

X = np.array([[1, 2, 3, 4], [0.5, 0, -1, 2]], dtype=np.float32)


def tensor(name, values, datatype):
    made = grpc.InferInput(name, values.shape, datatype)
    made.set_data_from_numpy(values)
    return made


def refused(call):
    try:
        call()
    except InferenceServerException as error:
        return error
    raise AssertionError("was not refused")


def test_health_and_metadata(gateway):
    client = grpc.InferenceServerClient(gateway.grpc)
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("affine") and not client.is_model_ready("none")
    assert "statistics" in client.get_server_metadata().extensions
    metadata = client.get_model_metadata("affine", as_json=True)
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    config = client.get_model_config("affine").config
    assert config.max_batch_size > 0 and list(config.input[0].dims) == [4]
    index = client.get_model_repository_index().models
    assert ("affine", "1", "READY") in {(m.name, m.version, m.state) for m in index}
    assert "NOT_FOUND" in refused(lambda: client.get_model_config("none")).status()


def test_inference(gateway):
    client = grpc.InferenceServerClient(gateway.grpc)
    for coding in (None, "gzip", "deflate"):
        answer = client.infer(
            "affine", [tensor("x", X, "FP32")], request_id="7", compression_algorithm=coding
        )
        np.testing.assert_allclose(answer.as_numpy("y"), affine_of(X), rtol=1e-6)
        assert answer.get_response().id == "7"
    outputs = [grpc.InferRequestedOutput("p", class_count=2)]
    found = client.infer("affine", [tensor("x", X, "FP32")], outputs=outputs).as_numpy("p")
    assert found.shape == (2, 2) and b":" in found[0][0]


def test_datatypes_come_back_as_they_went(gateway):
    client = grpc.InferenceServerClient(gateway.grpc)
    for model, values, datatype in [
        ("text", np.array(["aü😀".encode(), b"b", b""], dtype=np.object_), "BYTES"),
        ("half", np.array([1, -0.5, 65504], dtype=np.float16), "FP16"),
        ("flag", np.array([True, False]), "BOOL"),
        ("long", np.array([-(2**63), 2**63 - 1]), "INT64"),
    ]:
        found = client.infer(model, [tensor("x", values, datatype)]).as_numpy("y")
        np.testing.assert_array_equal(found, values)


def test_a_large_message(gateway):
    client = grpc.InferenceServerClient(gateway.grpc)
    many = np.random.default_rng(7).random((2, 2_000_000)).astype(np.float16)
    np.testing.assert_array_equal(client.infer("wide", [tensor("x", many, "FP16")]).as_numpy("y"), many)


def test_statistics_count_rows_and_runs(gateway):
    client = grpc.InferenceServerClient(gateway.grpc)
    before = client.get_inference_statistics("affine").model_stats[0]
    client.infer("affine", [tensor("x", X, "FP32")])
    after = client.get_inference_statistics("affine").model_stats[0]
    assert after.inference_count == before.inference_count + 2
    assert after.execution_count == before.execution_count + 1


def test_what_is_wrong_has_its_code(gateway):
    client = grpc.InferenceServerClient(gateway.grpc)
    x = tensor("x", X, "FP32")
    assert "NOT_FOUND" in refused(lambda: client.infer("none", [x])).status()
    wrong = [tensor("x", X.astype(np.float64), "FP64")]
    assert "INVALID_ARGUMENT" in refused(lambda: client.infer("affine", wrong)).status()
    assert "DEADLINE" in refused(lambda: client.infer("affine", [x], timeout=1)).status()
    assert "UNIMPLEMENTED" in refused(lambda: client.get_system_shared_memory_status()).status()
    client.infer("affine", [x], priority=1, client_timeout=5.0)


def test_a_stream_keeps_its_order_and_outlives_an_error(gateway):
    client = grpc.InferenceServerClient(gateway.grpc)
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for k in range(40):
        model = "none" if k % 4 == 3 else "affine"
        client.async_stream_infer(
            model, [tensor("x", X + k, "FP32")], request_id=str(k), enable_empty_final_response=k % 2 == 0
        )
    for k in range(40):
        result, error = answers.get(timeout=60)
        if k % 4 == 3:
            assert "none" in error.message()
        else:
            assert result.get_response().id == str(k)
            np.testing.assert_allclose(result.as_numpy("y"), affine_of(X + k), rtol=1e-5)
    client.stop_stream()


def test_models_are_loaded_and_unloaded(gateway):
    client = grpc.InferenceServerClient(gateway.grpc)
    name = "loaded_over_grpc"
    client.load_model(name, config='{"max_batch_size": 8}', files={"file:1/model.onnx": affine()})
    assert client.is_model_ready(name)
    found = client.infer(name, [tensor("x", X, "FP32")]).as_numpy("y")
    np.testing.assert_allclose(found, affine_of(X), rtol=1e-6)
    refused(lambda: client.load_model("broken", config="{}", files={"file:1/model.onnx": b"none"}))
    client.unload_model(name)
    assert not client.is_model_ready(name)


def test_calls_at_a_time(gateway):
    client = grpc.InferenceServerClient(gateway.grpc)
    answers = queue.Queue()
    for k in range(64):
        client.async_infer(
            "affine", [tensor("x", X, "FP32")], lambda result, error: answers.put((result, error))
        )
    for _ in range(64):
        result, error = answers.get(timeout=60)
        assert error is None
        np.testing.assert_allclose(result.as_numpy("y"), affine_of(X), rtol=1e-6)


def test_pings_are_tolerated(gateway):
    keep_alive = grpc.KeepAliveOptions(
        keepalive_time_ms=100,
        keepalive_timeout_ms=5_000,
        keepalive_permit_without_calls=True,
        http2_max_pings_without_data=0,
    )
    client = grpc.InferenceServerClient(gateway.grpc, keepalive_options=keep_alive)
    assert client.is_server_live()
    # Some thirty pings; a server that minds them closes the connection after two.
    time.sleep(3)
    client.infer("affine", [tensor("x", X, "FP32")])


def test_asyncio(gateway):
    async def ask():
        async with grpc_aio.InferenceServerClient(gateway.grpc) as client:
            ask = lambda k: client.infer("affine", [tensor("x", X + k, "FP32")])
            for k, answer in enumerate(await asyncio.gather(*map(ask, range(32)))):
                np.testing.assert_allclose(answer.as_numpy("y"), affine_of(X + k), rtol=1e-5)

            async def requests():
                for k in range(8):
                    yield {"model_name": "affine", "inputs": [tensor("x", X + k, "FP32")], "request_id": str(k)}

            seen = 0
            async for result, error in client.stream_infer(requests()):
                assert error is None and result.get_response().id == str(seen)
                seen += 1
            assert seen == 8

    asyncio.run(ask())
