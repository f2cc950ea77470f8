"""A client that knows nothing of us but the port: it learns the messages by reflection, and calls."""
import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, unknown_fields


# Wire: ServerReflectionRequest{file_by_filename=3, file_containing_symbol=4}, ServerReflectionResponse
# {file_descriptor_response=4 {file_descriptor_proto=1}}; both built here from their field numbers.
def reflection_messages():
    file = descriptor_pb2.FileDescriptorProto(name="r.proto", package="r", syntax="proto3")
    string, data, message = 9, 12, 11
    for name, fields in {
        "Request": [("file", 3, string, 1, None), ("symbol", 4, string, 1, None)],
        "Files": [("descriptors", 1, data, 3, None)],
        "Response": [("files", 4, message, 1, ".r.Files")],
    }.items():
        made = file.message_type.add(name=name)
        if name == "Request":
            made.oneof_decl.add(name="asked")
        for field, number, kind, label, type_name in fields:
            made.field.add(name=field, number=number, type=kind, label=label, type_name=type_name)
            if name == "Request":
                made.field[-1].oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"r.{name}"))
    return made("Request"), made("Response")


def learnt(channel, service, symbol):
    """The pool of what `service` tells of `symbol`."""
    request, response = reflection_messages()
    call = channel.stream_stream(
        f"/{service}/ServerReflectionInfo", lambda m: m.SerializeToString(), response.FromString
    )
    pool, known = descriptor_pool.DescriptorPool(), set()

    def add(**asked):
        told = next(iter(call(iter([request(**asked)]), timeout=30)))
        [data] = told.files.descriptors
        file = descriptor_pb2.FileDescriptorProto.FromString(data)
        known.add(file.name)
        for dependency in set(file.dependency) - known:
            add(file=dependency)
        pool.Add(file)

    add(symbol=symbol)
    return pool


def test_every_method_is_described_as_it_answers(gateway):
    with grpc.insecure_channel(gateway.grpc) as channel:
        for service in ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"):
            pool = learnt(channel, service, "inference.GRPCInferenceService")
            methods = pool.FindServiceByName("inference.GRPCInferenceService").methods

            def ask(name, asked):
                method = next(method for method in methods if method.name == name)
                request = message_factory.GetMessageClass(method.input_type)
                response = message_factory.GetMessageClass(method.output_type)
                call = channel.unary_unary(
                    f"/inference.GRPCInferenceService/{name}", request.SerializeToString, response.FromString
                )
                answered = call(json_format.ParseDict(asked, request()), timeout=30)
                assert not list(unknown_fields.UnknownFieldSet(answered)), name
                return json_format.MessageToDict(answered, preserving_proto_field_name=True)

            for method in methods:
                # Streams are asked elsewhere, as is what changes the repository.
                if method.name in ("ModelInfer", "ModelStreamInfer", "RepositoryModelLoad", "RepositoryModelUnload"):
                    continue
                asked = {"name": "affine"} if "name" in method.input_type.fields_by_name else {}
                assert ask(method.name, asked), method.name
            x = {"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32_contents": [1, 0, 0, 0]}}
            answered = ask("ModelInfer", {"model_name": "affine", "inputs": [x]})
            assert [output["name"] for output in answered["outputs"]] == ["y", "p"]
