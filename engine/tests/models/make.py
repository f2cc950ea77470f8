"""Writes the models beside it, with inputs and the outputs that Python's onnxruntime gives.

    pip install numpy onnx==1.22.0 onnxruntime==1.32.0 skl2onnx onnxmltools scikit-learn lightgbm
    python make.py
"""

import pathlib

import lightgbm
import numpy as np
import onnx
import onnxmltools
import onnxruntime
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnxmltools.convert.common.data_types import FloatTensorType as ToolsFloat
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

HERE = pathlib.Path(__file__).parent
x, y = load_iris(return_X_y=True)
x = x.astype(np.float32)
kinds = np.array(["setosa", "versicolor", "virginica"])[y]
rows = x[[0, 60, 120]]


def save(name, model, inputs):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    folder = HERE / name / "test_data_set_0"
    folder.mkdir(parents=True, exist_ok=True)
    (HERE / name / "model.onnx").write_bytes(model.SerializeToString())
    for k, (key, value) in enumerate(inputs.items()):
        write(folder / f"input_{k}.pb", key, value)
    outputs = zip(session.get_outputs(), session.run(None, inputs))
    for k, (output, value) in enumerate(outputs):
        if isinstance(value, list):  # a ZipMap's dictionaries, as the tensor they were
            value = np.array([list(row.values()) for row in value], dtype=np.float32)
        write(folder / f"output_{k}.pb", output.name, value)


def write(path, name, value):
    value = np.asarray(value)
    if value.dtype.kind == "U":
        value = value.astype(object)
    path.write_bytes(numpy_helper.from_array(value, name).SerializeToString())


def graph_model(name, nodes, inputs, outputs, initializers=(), opsets=(("", 17),)):
    values = [[helper.make_tensor_value_info(*value) for value in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, name, *values, initializer=list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*o) for o in opsets], ir_version=8)


# scikit-learn, whose exports end in ZipMap unless told otherwise, and its labels.
linear = LogisticRegression(max_iter=1000).fit(x, y)
save("sklearn_zipmap", to_onnx(linear, x[:1], target_opset=17), {"X": rows})
forest = RandomForestClassifier(n_estimators=3, max_depth=2, random_state=1).fit(x, kinds)
save("sklearn_zipmap_text_labels", to_onnx(forest, x[:1], target_opset=17), {"X": rows})
plain = to_onnx(forest, x[:1], target_opset=17, options={"zipmap": False})
save("sklearn_text_labels", plain, {"X": rows})

# LightGBM by onnxmltools: ZipMap after a Cast, and imports beyond need.
boosted = lightgbm.LGBMClassifier(n_estimators=2, num_leaves=4, verbose=-1).fit(x, y)
converted = onnxmltools.convert_lightgbm(boosted, initial_types=[("X", ToolsFloat([None, 4]))], target_opset=15)
save("lightgbm_zipmap", converted, {"X": rows})

# Doubles through TreeEnsemble of ai.onnx.ml 5, as LightGBM's own thresholds are.
doubles = lambda name, values: helper.make_tensor(name, T.DOUBLE, [len(values)], values)
tree = helper.make_node(
    "TreeEnsemble", ["X"], ["Y"], domain="ai.onnx.ml", n_targets=1, aggregate_function=1, post_transform=0,
    tree_roots=[0], nodes_featureids=[0, 1], nodes_splits=doubles("s", [0.1, -2.5]),
    nodes_modes=helper.make_tensor("m", T.UINT8, [2], [0, 0]), nodes_truenodeids=[1, 0], nodes_trueleafs=[0, 1],
    nodes_falsenodeids=[2, 1], nodes_falseleafs=[1, 1], nodes_missing_value_tracks_true=[1, 0],
    leaf_targetids=[0, 0, 0], leaf_weights=doubles("w", [0.1, 0.2, 0.3]),
)
save(
    "trees_double",
    graph_model("trees", [tree], [("X", T.DOUBLE, ["N", 2])], [("Y", T.DOUBLE, ["N", 1])], opsets=[("", 21), ("ai.onnx.ml", 5)]),
    {"X": np.array([[0.1, -3.0], [0.1, 0.0], [0.100000001, 0.0], [np.nan, -2.5]])},
)

# First axes that are no batch: fixed, absent, second; and no input at all.
weights = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
fixed = graph_model(
    "fixed", [helper.make_node("MatMul", ["x", "w"], ["y"])],
    [("x", T.FLOAT, [2, 3])], [("y", T.FLOAT, [2, 2])], [weights],
)
save("first_axis_fixed", fixed, {"x": np.ones((2, 3), np.float32)})
scalar = graph_model("scalar", [helper.make_node("Exp", ["x"], ["y"])], [("x", T.FLOAT, [])], [("y", T.FLOAT, [])])
save("scalar", scalar, {"x": np.array(0.5, np.float32)})
state = graph_model(
    "state",
    [helper.make_node("Add", ["state", "input"], ["next"]), helper.make_node("ReduceSum", ["next", "axes"], ["sum"], keepdims=0)],
    [("input", T.FLOAT, ["batch", 4]), ("state", T.FLOAT, [2, "batch", 4])],
    [("sum", T.FLOAT, ["batch"]), ("next", T.FLOAT, [2, "batch", 4])],
    [numpy_helper.from_array(np.array([0, 2], np.int64), "axes")],
)
save("state", state, {"input": np.ones((3, 4), np.float32), "state": np.ones((2, 3, 4), np.float32)})
constant = helper.make_node("Constant", [], ["y"], value=helper.make_tensor("v", T.FLOAT, [2], [1.0, 2.0]))
save("no_input", graph_model("no_input", [constant], [], [("y", T.FLOAT, [2])]), {})

# Text in and out, and a default for an input that is an initializer.
encode = helper.make_node("LabelEncoder", ["text"], ["code"], domain="ai.onnx.ml", keys_strings=["é", ""], values_int64s=[1, 2], default_int64=-1)
decode = helper.make_node("LabelEncoder", ["code"], ["back"], domain="ai.onnx.ml", keys_int64s=[1, 2], values_strings=["é", ""], default_string="?")
texts = graph_model(
    "texts", [encode, decode], [("text", T.STRING, ["N"])], [("code", T.INT64, ["N"]), ("back", T.STRING, ["N"])],
    opsets=[("", 17), ("ai.onnx.ml", 3)],
)
save("texts", texts, {"text": np.array(["é", "", "other"], dtype=object)})
overridable = graph_model(
    "overridable", [helper.make_node("Mul", ["x", "by"], ["y"])],
    [("by", T.FLOAT, [1]), ("x", T.FLOAT, ["N"])], [("y", T.FLOAT, ["N"])],
    [numpy_helper.from_array(np.array([2.0], np.float32), "by")],
)
folder = HERE / "input_with_default"
save("input_with_default", overridable, {"x": np.array([1.0, 2.0], np.float32)})
(folder / "test_data_set_0/input_0.pb").rename(folder / "test_data_set_0/input_1.pb")
