"""KServe's own clients, which read health bodies and retry on UNAVAILABLE."""
import asyncio

import httpx
import numpy as np
from kserve import InferInput, InferRequest, InferenceGRPCClient, InferenceRESTClient
from kserve.inference_client import RESTConfig

from gateway import affine_of

X = np.array([[1, 2, 3, 4], [0.5, 0, -1, 2]], dtype=np.float32)


def request(model="affine"):
    x = InferInput("x", list(X.shape), "FP32")
    x.set_data_from_numpy(X, binary_data=False)
    return InferRequest(model, [x])


def found(response):
    return next(output for output in response.outputs if output.name == "y").as_numpy()


def test_rest(gateway):
    async def ask():
        url = f"http://{gateway.http}"
        async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
            assert await client.is_server_live(url) and await client.is_server_ready(url)
            assert await client.is_model_ready(url, "affine")
            assert not await client.is_model_ready(url, "none")
            response = await client.infer(url, request(), model_name="affine")
            np.testing.assert_allclose(found(response).reshape(2, 3), affine_of(X), rtol=1e-6)
            assert response.model_name == "affine"
            binary = InferInput("x", list(X.shape), "FP32")
            binary.set_data_from_numpy(X, binary_data=True)
            response = await client.infer(url, InferRequest("affine", [binary]), model_name="affine")
            np.testing.assert_allclose(found(response).reshape(2, 3), affine_of(X), rtol=1e-6)
            try:
                await client.infer(url, request("none"), model_name="none")
            except httpx.HTTPStatusError as error:
                assert error.response.status_code == 404
            else:
                raise AssertionError("an unknown model answered")

    asyncio.run(ask())


def test_grpc(gateway):
    async def ask():
        client = InferenceGRPCClient(gateway.grpc)
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("affine")
        response = await client.infer(request())
        np.testing.assert_allclose(found(response).reshape(2, 3), affine_of(X), rtol=1e-6)
        await client.close()

    asyncio.run(ask())
