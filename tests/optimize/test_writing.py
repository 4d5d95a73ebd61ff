"""Text that a teacher writes: near the given one, the same each time, kept by portions."""

import numpy as np
import pytest

from hasten.generation import Engine
from hasten.measure.corpus import Windows, cut_windows, default_corpus
from hasten.models import load_model
from hasten.optimize.distillation import writing
from hasten.optimize.distillation.distill import distill
from hasten.optimize.distillation.settings import DistillSettings
from hasten.optimize.distillation.writing import PORTION, with_written
from hasten.optimize.passes.prune_layers import without_layers

CONTEXT = 48


@pytest.fixture(scope="module")
def teacher(tiny_model):
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def given(teacher):
    return cut_windows(default_corpus(), teacher.tokenizer, tokens=900, context=CONTEXT)


def write(given, teacher, place, tokens=2000, seed=1, told=None):
    def progress(what, share):
        if told is not None:
            told.append((what, share))

    return with_written(given, teacher, tokens, place, progress, seed=seed)


def test_windows_go_on_from_the_text(given, teacher, tmp_path):
    told = []
    found = write(given, teacher, tmp_path, told=told)
    assert found.ids[: len(given.ids)] == given.ids
    written = found.ids[len(given.ids) :]
    assert {len(window) for window in written} == {CONTEXT}
    assert 2000 <= len(written) * CONTEXT < 2000 + CONTEXT
    assert found.digest != given.digest
    assert "2016 tokens written by" in found.name
    assert told[0][1] == 0.0
    stretches = {
        window[begin : begin + 12] for window in given.ids for begin in range(len(window) - 11)
    }
    for window in written:
        assert any(window[begin : begin + 12] in stretches for begin in (0, 1, 2))
    assert len(set(written)) == len(written)


def test_what_is_written_is_what_the_teacher_finds_likely(given, teacher, tmp_path):
    """Its mean surprise is the mean entropy of the teacher, within what chance allows."""
    written = write(given, teacher, tmp_path, tokens=6000).ids[len(given.ids) :]
    surprises, entropies = [], []
    with Engine(teacher, None) as engine:
        for window in written[:80]:
            (rows_of_logits,) = [rows for _, rows in engine.score(window)]
            logits = rows_of_logits.astype(np.float64)
            logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            rows = np.arange(CONTEXT // 2, CONTEXT - 1)
            surprises += (-logs[rows, np.array(window)[rows + 1]]).tolist()
            entropies += (-(np.exp(logs[rows]) * logs[rows]).sum(-1)).tolist()
    error = np.std(np.subtract(surprises, entropies)) / np.sqrt(len(surprises))
    assert abs(np.mean(surprises) - np.mean(entropies)) < 4 * error


def test_a_seed_gives_one_text_and_portions_are_written_once(given, teacher, tmp_path, monkeypatch):
    tokens = (PORTION + 2) * CONTEXT
    first = write(given, teacher, tmp_path / "a", tokens)
    assert write(given, teacher, tmp_path / "b", tokens) == first
    assert write(given, teacher, tmp_path / "c", tokens, seed=2).ids != first.ids
    calls, go_on = [], writing._go_on
    monkeypatch.setattr(writing, "_go_on", lambda *given: calls.append(1) or go_on(*given))
    (kept,) = (tmp_path / "a").rglob("text.1.safetensors")
    kept.unlink()
    assert write(given, teacher, tmp_path / "a", tokens) == first
    assert len(calls) == 1


def test_a_text_shorter_than_openings_is_enough(teacher, tmp_path):
    given = Windows.of("short", [tuple(range(5, 15))] * 2, 64)
    written = write(given, teacher, tmp_path, tokens=640).ids[2:]
    assert {len(window) for window in written} == {64}


@pytest.mark.usefixtures("one_thread")
def test_a_student_learns_from_it_too(given, teacher, tmp_path):
    pytest.importorskip("torch")
    student = without_layers(teacher, [1])
    settings = DistillSettings(steps=2, length=16, written=4000, batch=2)
    told = []
    distill(student, teacher, given, settings, tmp_path, lambda what, _: told.append(what))
    assert told[0].startswith("writing text: 0 tokens")
    assert told[-1].startswith("step 2 of 2")
    assert "written 4000" in settings.changes
