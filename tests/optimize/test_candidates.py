"""Formats that fit, their sizes, and thread counts worth trying."""

import pytest

from hasten.optimize.candidates import (
    Candidate,
    operator_choices,
    original,
    thread_counts,
    vocabulary_candidates,
    vocabulary_matrices,
    why_unfit,
)


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


def test_operators_computed_otherwise_are_in_label_settings_and_options():
    base = Candidate("int8", "bf16", 2)
    assert base.settings() == {"weights": "int8", "overrides": {}, "kv": "bf16", "threads": 2}
    unfused, narrow = operator_choices(base, ["avx2"])
    assert unfused.label == "int8, KV bf16, 2 threads, op by op"
    assert unfused.settings() == {**base.settings(), "fuse": False}
    assert narrow.label == "int8, KV bf16, 2 threads, avx2 kernels"
    assert narrow.settings() == {**base.settings(), "isa": "avx2"}
    options = [one.options(64) for one in (base, unfused, narrow)]
    found = [(one.fuse, one.isa) for one in options]
    assert found == [(True, None), (False, None), (True, "avx2")]
