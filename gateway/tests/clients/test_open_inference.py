"""The protocol's own client, generated from its OpenAPI file: every operation that it has."""
from open_inference.openapi.client import OpenInferenceClient
from open_inference.openapi.errors import NotFoundError
from open_inference.openapi.core.api_error import ApiError
from open_inference.openapi.types import InferenceRequest

REQUEST = {
    "id": "7",
    "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 0, 0, 0]}],
    "outputs": [{"name": "y"}],
}


def test_every_operation(gateway):
    client = OpenInferenceClient(base_url=f"http://{gateway.http}")
    client.check_server_liveness()
    client.check_server_readiness()
    client.check_model_readiness("affine")
    client.check_model_version_readiness("affine", "1")
    assert client.read_server_metadata().name == "loopgate"
    for metadata in (client.read_model_metadata("affine"), client.read_model_version_metadata("affine", "1")):
        assert metadata.name == "affine" and metadata.inputs[0].datatype == "FP32"
    request = InferenceRequest.parse_obj(REQUEST)
    for response in (
        client.model_infer("affine", request=request),
        client.model_version_infer("affine", "1", request=request),
    ):
        assert response.id == "7" and response.model_name == "affine"
        assert [output.name for output in response.outputs] == ["y"]
        data = response.outputs[0].data
        assert list(getattr(data, "__root__", data)) == [0.5, -0.375, 0.5]


def test_what_is_unknown_is_not_found(gateway):
    client = OpenInferenceClient(base_url=f"http://{gateway.http}")
    try:
        client.model_infer("none", request=InferenceRequest.parse_obj(REQUEST))
    except (NotFoundError, ApiError) as error:
        assert error.status_code == 404
    else:
        raise AssertionError("an unknown model answered")
