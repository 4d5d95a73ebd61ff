"""Made-up tensors, and tensors as bytes."""

import numpy as np
import pytest

from hasten.errors import UsageError
from hasten.measure.targets.target import TargetError
from hasten.measure.targets.tensors import (
    NUMPY,
    TensorSpec,
    check_size,
    datatype_of,
    random_workload,
    tensors_of,
    to_bytes,
)
from hasten.measure.workload import Item

SPECS = [TensorSpec(name.lower(), name, (2, 3)) for name in (*NUMPY, "BYTES")]


def test_what_is_drawn_is_of_the_datatype_and_shape():
    workload = random_workload(SPECS, 3, warmup=1)
    assert (len(workload.items), len(workload.warmup)) == (3, 1)
    for work in (*workload.items, *workload.warmup):
        for spec in SPECS:
            array = work.inputs[spec.name]
            assert datatype_of(array) == spec.datatype
            assert array.shape == (2, 3)
            if spec.datatype.startswith("FP"):
                assert 0 <= array.min() < array.max() <= 1
            elif spec.datatype == "BYTES":
                assert all(isinstance(one, bytes) and len(one) == 16 for one in array.flat)
            elif spec.datatype != "BOOL":
                assert 0 <= array.min() < array.max() < 100


def bytes_of_all(seed):
    return [
        to_bytes(array)
        for work in random_workload(SPECS, 2, seed=seed).items
        for array in work.inputs.values()
    ]


def test_what_is_drawn_hangs_on_the_seed():
    assert bytes_of_all(1) == bytes_of_all(1)
    assert bytes_of_all(1) != bytes_of_all(2)
    first, second = random_workload(SPECS, 2).items
    assert to_bytes(first.inputs["fp32"]) != to_bytes(second.inputs["fp32"])


def test_open_sizes_are_the_users():
    spec = TensorSpec("x", "FP32", (-1, 3))
    (work,) = random_workload([spec], 1, shapes={"x": [5, 3]}).items
    assert work.inputs["x"].shape == (5, 3)


@pytest.mark.parametrize(
    ("spec", "shapes", "words"),
    [
        (TensorSpec("x", "FP32", (-1, 3)), {}, "size for each -1"),
        (TensorSpec("x", "FP32", (-1, 3)), {"x": [-1, 3]}, "size for each -1"),
        (TensorSpec("x", "FP32", (-1, 3)), {"x": [2, 4]}, "does not fit"),
        (TensorSpec("x", "FP32", (-1, 3)), {"x": [2]}, "does not fit"),
        (TensorSpec("x", "FP32", (3,)), {"y": [3]}, "no input 'y'"),
        (TensorSpec("x", "FP32", (2**20, 2**20)), {}, "values"),
        (TensorSpec("x", "BF16", (3,)), {}, "BF16"),
    ],
)
def test_what_cannot_be_drawn(spec, shapes, words):
    with pytest.raises(UsageError, match=words):
        random_workload([spec], 1, shapes=shapes)


@pytest.mark.parametrize("integers", [(0, 300), (-1, 5), (5, 5)])
def test_integers_that_do_not_fit(integers):
    with pytest.raises(UsageError, match="do not fit UINT8"):
        random_workload([TensorSpec("x", "UINT8", (3,))], 1, integers=integers)


def test_integers_up_to_the_largest():
    spec = TensorSpec("x", "UINT64", (50,))
    (work,) = random_workload([spec], 1, integers=(2**64 - 2, 2**64)).items
    assert set(work.inputs["x"].tolist()) == {2**64 - 2, 2**64 - 1}


def test_bytes_are_row_major_and_little_endian():
    array = np.array([[1, 2], [3, 4]], ">i4")
    assert to_bytes(array) == np.array([1, 2, 3, 4], "<i4").tobytes()
    assert to_bytes(array.T) == np.array([1, 3, 2, 4], "<i4").tobytes()
    assert to_bytes(np.array([True, False])) == b"\1\0"


@pytest.mark.parametrize("values", [np.array([b"ab", "ü"], object), np.array(["ab", "ü"])])
def test_texts_stand_after_their_lengths(values):
    assert datatype_of(values) == "BYTES"
    assert to_bytes(values) == b"\2\0\0\0ab\2\0\0\0\xc3\xbc"


@pytest.mark.parametrize("code", ["c8", "M8[s]", "V3"])
def test_arrays_without_a_datatype(code):
    with pytest.raises(UsageError, match="no datatype"):
        to_bytes(np.zeros(2, code))


def test_sizes_of_outputs():
    check_size("y", "FP32", [2, 3], 24)
    check_size("y", "BYTES", [2], 7)
    with pytest.raises(TargetError, match=r"'y'.*20 bytes, not 24"):
        check_size("y", "FP32", [2, 3], 20)


def test_prompts_are_no_tensors():
    with pytest.raises(UsageError, match="not prompts"):
        tensors_of(Item("a", 1))
