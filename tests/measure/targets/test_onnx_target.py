"""ONNX files, run in this process; models are made on the spot."""

import asyncio
import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from packets import broken

from hasten.errors import HastenError, ModelFileError, UsageError
from hasten.measure.arrivals import ClosedLoop
from hasten.measure.load import run_load
from hasten.measure.metrics import model_latency
from hasten.measure.records import Answer
from hasten.measure.targets.onnx import OnnxTarget
from hasten.measure.targets.onnx_files import check_external_data
from hasten.measure.targets.target import TargetError
from hasten.measure.targets.tensors import TensorSpec, random_workload
from hasten.measure.workload import Item, Tensors

WEIGHTS = np.arange(6, dtype=np.float32).reshape(3, 2)


def matmul(initializer, nodes=()):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([*nodes, node], "g", [x], [y], initializer)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def external(location, name="w"):
    tensor = numpy_helper.from_array(WEIGHTS, name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(WEIGHTS.nbytes)}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(matmul([numpy_helper.from_array(WEIGHTS, "w")]), path)
    return path


def test_a_load(model):
    target = OnnxTarget(model, threads=1, concurrency=2)
    signature = asyncio.run(target.signature())
    assert signature == (TensorSpec("x", "FP32", (-1, 3)),)
    workload = random_workload(signature, 20, warmup=2, shapes={"x": (4, 3)})
    for _ in range(2):
        result = run_load(target, workload, ClosedLoop(4))
        assert [one.status for one in result.records] == ["completed"] * 20
        for record in result.records:
            latency = record.end - record.sent
            assert 0 < model_latency(record) <= latency
            assert 0 <= record.parts["queue"] <= latency
    assert target.describe()["providers"] == ["CPUExecutionProvider"]


def test_all_datatypes(tmp_path):
    kinds = {
        "BOOL": TensorProto.BOOL,
        "BYTES": TensorProto.STRING,
        "FP16": TensorProto.FLOAT16,
        "FP32": TensorProto.FLOAT,
        "FP64": TensorProto.DOUBLE,
        **{f"INT{n}": getattr(TensorProto, f"INT{n}") for n in (8, 16, 32, 64)},
        **{f"UINT{n}": getattr(TensorProto, f"UINT{n}") for n in (8, 16, 32, 64)},
    }
    inputs = [helper.make_tensor_value_info(f"x{k}", v, [2]) for k, v in kinds.items()]
    outputs = [helper.make_tensor_value_info(f"y{k}", v, [2]) for k, v in kinds.items()]
    nodes = [helper.make_node("Identity", [f"x{k}"], [f"y{k}"]) for k in kinds]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opsets), tmp_path / "all.onnx")
    target = OnnxTarget(tmp_path / "all.onnx")
    signature = asyncio.run(target.signature())
    assert {one.datatype for one in signature} == set(kinds)
    (record,) = run_load(target, random_workload(signature, 1)).records
    assert record.status == "completed", record.reason


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"z": np.zeros((1, 3), np.float32)},
        {"x": np.zeros((1, 4), np.float32)},
        {"x": np.zeros(3)},
    ],
)
def test_inputs_that_do_not_fit(model, inputs):
    async def go():
        async with OnnxTarget(model) as target:
            await target.send(Tensors(inputs), Answer())

    with pytest.raises(TargetError, match="ONNX Runtime"):
        asyncio.run(go())


def test_prompts_are_refused(model):
    async def go():
        async with OnnxTarget(model) as target:
            await target.send(Item("Hi", 1), Answer())

    with pytest.raises(UsageError, match="not prompts"):
        asyncio.run(go())


def test_data_beside_the_model(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(WEIGHTS.tobytes())
    onnx.save(matmul([external("data/w.bin")]), tmp_path / "model.onnx")
    target = OnnxTarget(tmp_path / "model.onnx")
    workload = random_workload(asyncio.run(target.signature()), 1, shapes={"x": (1, 3)})
    assert run_load(target, workload).records[0].status == "completed"


def hidden_places(tensor):
    """Models that carry the tensor where few readers look."""
    w = numpy_helper.from_array(WEIGHTS, "w")
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    value = helper.make_tensor_value_info("c", TensorProto.FLOAT, None)
    branch = helper.make_graph([constant], "branch", [], [value])
    held = helper.make_graph(
        [helper.make_node("Identity", ["v"], ["c"])], "b", [], [value], [tensor]
    )
    condition = numpy_helper.from_array(np.array(True), "if")
    choice = [
        helper.make_node("If", ["if"], ["z"], then_branch=one, else_branch=one)
        for one in (branch, held)
    ]
    function = helper.make_function("d", "F", [], ["c"], [constant], [helper.make_opsetid("", 17)])
    with_function = matmul([w])
    with_function.functions.append(function)
    sparse = matmul([w])
    sparse.graph.sparse_initializer.add(dims=[6]).values.CopyFrom(tensor)
    training = matmul([w])
    training.training_info.add().algorithm.initializer.append(tensor)
    many = helper.make_node("Odd", [], ["c"], domain="d")
    many.attribute.append(helper.make_attribute("all", [tensor]))
    sparse_node = helper.make_node("Odd", [], ["c"], domain="d")
    sparse_node.attribute.add(name="all").sparse_tensors.add(dims=[6]).values.CopyFrom(tensor)
    return [
        matmul([tensor]),
        matmul([w], [constant]),
        matmul([w, condition], [choice[0]]),
        matmul([w, condition], [choice[1]]),
        with_function,
        sparse,
        training,
        matmul([w], [many]),
        matmul([w], [sparse_node]),
    ]


@pytest.mark.parametrize("place", range(9))
def test_data_elsewhere_is_refused_wherever_it_is_named(tmp_path, place):
    outside = tmp_path / "w.bin"
    outside.write_bytes(WEIGHTS.tobytes())
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "model.onnx"
    path.write_bytes(hidden_places(external("../w.bin"))[place].SerializeToString())
    with pytest.raises(ModelFileError, match="not a file in the model's folder"):
        check_external_data(path)


@pytest.mark.parametrize("kind", ["absolute", "link", "folder", "missing", "linked folder", "null"])
def test_ways_out_of_the_folder(tmp_path, kind):
    outside = tmp_path / "w.bin"
    outside.write_bytes(WEIGHTS.tobytes())
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    (folder / "up").symlink_to(tmp_path)
    names = {
        "absolute": str(outside),
        "link": "link",
        "folder": ".",
        "missing": "none",
        "linked folder": "up/w.bin",
        "null": "a\0b",
    }
    onnx.save(matmul([external(names[kind])]), folder / "model.onnx")
    with pytest.raises(ModelFileError, match="its data in"):
        OnnxTarget(folder / "model.onnx")


def test_a_model_may_itself_be_a_link_to_where_its_data_is(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "w.bin").write_bytes(WEIGHTS.tobytes())
    onnx.save(matmul([external("w.bin")]), tmp_path / "in" / "model.onnx")
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    OnnxTarget(tmp_path / "linked" / "model.onnx")


@pytest.mark.parametrize("content", [b"", b"GGUF" * 10, b"\x3a\xff\xff\xff\xff\x0f", b"\x3a"])
def test_files_that_are_no_models(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError):
        OnnxTarget(path)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(ModelFileError, match="cannot be read"):
        OnnxTarget(tmp_path / "none.onnx")


def test_messages_nested_without_end(tmp_path):
    data = b""
    for _ in range(2000):  # an attribute's graph with a node with an attribute
        for number in (6, 5, 1):
            data = bytes([number << 3 | 2]) + varint(len(data)) + data
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x3a" + varint(len(data)) + data)
    with pytest.raises(ModelFileError, match="nested too deeply"):
        check_external_data(path)


def varint(n):
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


WHOLE = matmul([external("../w.bin")]).SerializeToString()


@given(st.data())
def test_broken_files_end_as_errors(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "broken.onnx"
    path.write_bytes(broken(data, WHOLE))
    with contextlib.suppress(HastenError):
        check_external_data(path)
