"""Formats that fit, their sizes, and thread counts worth trying."""

import numpy as np
import pytest

from hasten.kernels.quantization import quantize_rtn
from hasten.optimize.candidates import (
    Candidate,
    matrix_bytes,
    original,
    running_format,
    thread_counts,
    vocabulary_candidates,
    vocabulary_matrices,
    why_unfit,
)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 192, None])
@pytest.mark.parametrize("shape", [(3, 192), (7, 576)])
def test_predicted_bytes_are_those_of_the_quantised_matrix(bits, group, shape):
    if bits == 4 and group is None:
        return
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    matrix = quantize_rtn(values, bits, group)
    name = f"int{bits}" if group is None else f"int{bits}:{group}"
    assert matrix_bytes(running_format(name), [shape]) == matrix.nbytes


def test_dense_bytes_and_int4_without_minimums():
    assert matrix_bytes("f32", [(2, 64), (3, 32)]) == (128 + 96) * 4
    assert matrix_bytes("bf16", [(2, 64)]) == 256
    assert matrix_bytes("int4:32", [(2, 64)]) == 64 + 2 * 2 * 2
    with pytest.raises(ValueError, match="carried"):
        matrix_bytes("carried", [(2, 64)])


def test_vocabulary_candidates_override_the_matrices_with_a_row_a_token():
    shapes = {"embed": (100, 64), "up": (128, 64), "lm_head": (100, 64)}
    names = vocabulary_matrices(shapes, 100)
    (found,) = vocabulary_candidates(2, ["carried"], names)
    assert found.overrides == (("embed", "int4:32"), ("lm_head", "int4:32"))
    assert found.label == "carried, vocabulary int4:32, KV bf16, 2 threads"
    assert vocabulary_candidates(2, ["carried"], []) == []


def test_a_group_that_does_not_divide_the_columns_is_named():
    shapes = {"a": (4, 1536), "b": (4, 576)}
    assert why_unfit("int4:128", shapes) == "groups of 128 do not divide the 576 columns of b"
    assert why_unfit("int4:64", shapes) is None
    assert why_unfit("int8", shapes) is None
    assert why_unfit("carried", shapes) is None


@pytest.mark.parametrize(("cores", "counts"), [(1, []), (2, [1]), (6, [3, 1]), (16, [8, 4, 2, 1])])
def test_thread_counts_halve(cores, counts):
    assert thread_counts(cores) == counts


def test_a_candidate_becomes_engine_options():
    candidate = Candidate("carried", "int8", 1, (("a", "int8"),), "carried with int8 in 1 part")
    options = candidate.options(640)
    assert (options.weights, options.kv, options.threads) == ("carried", "int8", 1)
    assert options.overrides == {"a": "int8"}
    assert options.max_context == 640
    assert candidate.label == "carried with int8 in 1 part, KV int8, 1 thread"
    assert original(2).label == "f32, KV f32, 2 threads"
