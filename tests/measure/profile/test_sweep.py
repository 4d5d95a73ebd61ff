"""What settings change, on a tiny model."""

import pytest

from hasten.errors import CapacityError, UsageError
from hasten.generation import Engine
from hasten.measure.corpus import Corpus
from hasten.measure.profile.prompts import PromptSource
from hasten.measure.profile.sweep import SWEEPS, Setting, SweepRow, run_sweep, settings_of
from hasten.models import load_model
from hasten.types import EngineOptions


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(str(tiny_model))


@pytest.fixture
def prompts(model):
    return PromptSource(model.tokenizer, Corpus("made up", "what one sees and hears " * 20), 0)


def settings(sweep, **changes):
    options = EngineOptions(threads=1, prefix_cache=False, **changes)
    return settings_of(sweep, options, batch=2, input_tokens=20, output_tokens=4, context=64)


def test_the_given_value_is_among_those_of_each_sweep():
    for sweep in SWEEPS:
        found, base = settings(sweep)
        names = [one.name for one in found]
        assert base in names
        assert len(set(names)) == len(names) > 1
        given = next(one for one in found if one.name == base)
        assert (given.batch, given.input_tokens) == (2, 20)


def test_a_sweep_changes_one_thing():
    for sweep in SWEEPS:
        found, _ = settings(sweep)
        batches, lengths = ({getattr(one, n) for one in found} for n in ("batch", "input_tokens"))
        assert (len(batches) > 1) == (sweep == "batch")
        assert (len(lengths) > 1) == (sweep == "input")
        for name in ("weights", "fuse"):
            values = {getattr(one.options, name) for one in found}
            assert (len(values) > 1) == (sweep == name)


def test_prompts_longer_than_the_context_are_not_tried():
    found, _ = settings("input")
    assert [one.input_tokens for one in found] == [20, 32]
    assert {one.options.max_context for one in found} == {36}


def test_no_such_sweep():
    with pytest.raises(UsageError, match="no sweep over 'moon'"):
        settings("moon")


@pytest.mark.parametrize("sweep", ["batch", "input", "weights", "fuse"])
def test_rounds_measure_every_value(model, prompts, sweep):
    found, base = settings(sweep)
    notes = []
    result = run_sweep(
        model,
        sweep,
        found,
        base,
        prompts=prompts.draw,
        output_tokens=4,
        seconds=1e-9,
        on_progress=lambda done, note: notes.append((done, note)),
    )
    assert (result.setting, result.base, result.rounds) == (sweep, base, 3)
    assert [row.value for row in result.rows] == [one.name for one in found]
    assert all(row.prefill > 0 and row.decode > 0 for row in result.rows)
    given = next(row for row in result.rows if row.value == base)
    assert (given.prefill_ratio, given.decode_ratio) == (1.0, 1.0)
    measured = [note for _, note in notes if not note.startswith("opening")]
    names = [base, *(one.name for one in found if one.name != base)]
    assert measured == names + names[::-1] + names  # in turns, that alternate
    assert all(0 <= done <= 1e-9 for done, _ in notes)


def test_values_without_room_are_left_out(model, prompts, monkeypatch):
    def open_engine(model, options):
        if options.weights == "bf16":
            raise CapacityError("the weights take too much")
        return Engine(model, options)

    monkeypatch.setattr("hasten.measure.profile.sweep.Engine", open_engine)
    found, base = settings("weights")
    result = run_sweep(
        model, "weights", found, base, prompts=prompts.draw, output_tokens=3, seconds=1e-9
    )
    assert "bf16" not in [row.value for row in result.rows]
    assert "take too much" in result.left_out["bf16"]
    only = [one for one in found if one.name == "bf16"]
    with pytest.raises(CapacityError):
        run_sweep(
            model, "weights", only, "bf16", prompts=prompts.draw, output_tokens=3, seconds=1e-9
        )


def test_equal_options_share_an_engine(model, prompts, monkeypatch):
    opened = []

    def open_engine(model, options):
        opened.append(options)
        return Engine(model, options)

    monkeypatch.setattr("hasten.measure.profile.sweep.Engine", open_engine)
    found, base = settings("batch")
    run_sweep(model, "batch", found, base, prompts=prompts.draw, output_tokens=3, seconds=1e-9)
    assert len(opened) == 1
    assert opened[0].max_sequences == 8


def test_ratios_are_medians_over_rounds(model, prompts, monkeypatch):
    """A machine that gets slower while a sweep runs slows all values alike."""
    rates = iter(
        [(9.0, 9.0)] * 2  # the first turns do not count
        + [(100.0, 10.0), (200.0, 15.0), (100.0, 7.5), (50.0, 5.0), (25.0, 2.5), (50.0, 3.75)]
    )
    monkeypatch.setattr("hasten.measure.profile.sweep._measure", lambda *_: next(rates))
    options = EngineOptions(threads=1, max_context=32)
    values = [Setting("a", options, 1, 8), Setting("b", options, 1, 8)]
    result = run_sweep(
        model, "batch", values, "a", prompts=prompts.draw, output_tokens=3, seconds=1e-9
    )
    assert result.rows == (
        SweepRow("a", 50.0, 5.0, 1.0, 1.0),
        SweepRow("b", 100.0, 7.5, 2.0, 1.5),
    )


def test_prompts_have_exact_lengths_and_differ(model, prompts):
    drawn = prompts.draw(3, 30)
    assert [len(prompt) for prompt in drawn] == [30] * 3
    assert len(set(drawn)) == 3
    assert [len(prompt) for prompt in prompts.draw(1, 3000)] == [3000]
    with pytest.raises(UsageError, match="no tokens"):
        PromptSource(model.tokenizer, Corpus("empty", ""), 0)
