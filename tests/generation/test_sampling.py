"""Sampling as requests see it: several outputs, log probabilities, stop tokens, penalties."""

import numpy as np
import pytest
from engines import PROMPT, generated, new_engine, tokens_of
from letters import PIECES, Tokenizer
from tiny import make_model, some_tokens

from hasten.errors import UsageError
from hasten.types import Request, SamplingParams


@pytest.fixture(scope="module")
def model():
    return make_model()


def run(engine, requests):
    """Outputs of each sequence, by request and index."""
    for number, (prompt, sampling) in enumerate(requests):
        engine.submit(Request(str(number), tuple(prompt), sampling))
    outputs = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault((output.request_id, output.index), []).append(output)
    return outputs


def test_each_of_n_outputs_has_its_own_stream(model):
    params = SamplingParams(max_tokens=8, temperature=1, seed=5, n=4)
    with new_engine(model, max_sequences=3) as engine:
        together = run(engine, [(PROMPT, params), (some_tokens(4), SamplingParams(max_tokens=9))])
        assert sorted(together) == [("0", 0), ("0", 1), ("0", 2), ("0", 3), ("1", 0)]
        assert all(outs[-1].finish_reason == "length" for outs in together.values())
        answers = [tokens_of(together["0", index]) for index in range(4)]
        assert [len(answer) for answer in answers] == [8] * 4
        assert len({tuple(answer) for answer in answers}) == 4
        assert generated(engine, max_tokens=8, temperature=1, seed=5) == answers[0]
        # Alone or in company, the same.
        alone = list(engine.generate(PROMPT, params))
    for index in range(4):
        assert tokens_of(out for out in alone if out.index == index) == answers[index]


def test_outputs_share_the_blocks_of_the_prompt(model):
    prompt = some_tokens(70)
    with new_engine(model, max_context=128, max_sequences=3) as engine:
        outputs = run(engine, [(prompt, SamplingParams(max_tokens=3, temperature=1, n=3))])
        assert [outputs["0", index][0].cached_tokens for index in range(3)] == [0, 64, 64]
        assert engine.statistics().kv_blocks_used == 0


def test_cancelling_ends_all_outputs(model):
    with new_engine(model, max_sequences=2) as engine:
        engine.submit(Request("a", tuple(PROMPT), SamplingParams(max_tokens=40, n=5)))
        engine.step()
        engine.cancel("a")
        assert engine.step() == []
        assert not engine.has_work
        assert engine.statistics().kv_blocks_used == 0


def test_a_seed_repeats_in_any_company(model):
    everything = SamplingParams(
        max_tokens=12,
        temperature=1.2,
        top_k=40,
        top_p=0.95,
        min_p=0.01,
        seed=9,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=0.2,
        logit_bias={3: 2.0, 4: -100},
        logprobs=2,
    )
    others = [
        (some_tokens(20, seed=i), SamplingParams(max_tokens=5 + i, temperature=1)) for i in range(4)
    ]
    with new_engine(model) as engine:
        alone = list(engine.generate(PROMPT, everything))
    assert 4 not in tokens_of(alone)
    for options in ({"max_sequences": 3}, {"max_sequences": 5, "chunk": 6, "threads": 2}):
        with new_engine(model, **options) as engine:
            outputs = run(engine, [*others[:2], (PROMPT, everything), *others[2:]])["2", 0]
        assert tokens_of(outputs) == tokens_of(alone)
        assert [out.logprobs for out in outputs] == [out.logprobs for out in alone]


def log_softmax(rows):
    rows = rows.astype(np.float64) - rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("chunk", [4, 512])
def test_logprobs_of_prompt_and_output(model, chunk):
    params = SamplingParams(max_tokens=5, temperature=2, seed=1, logprobs=3, prompt_logprobs=2)
    with new_engine(model, chunk=chunk, max_sequences=2) as engine:
        # Another request in the batch moves the rows.
        outputs = run(engine, [(some_tokens(7), SamplingParams(max_tokens=9)), (PROMPT, params)])
        outputs = outputs["1", 0]
        tokens = tokens_of(outputs)
        want = log_softmax(np.concatenate([r for _, r in engine.score([*PROMPT, *tokens])]))
    entries = [*outputs[0].prompt_logprobs, *(entry for out in outputs for entry in out.logprobs)]
    assert all(not out.prompt_logprobs for out in outputs[1:])
    assert [entry.token for entry in entries] == [*PROMPT, *tokens]
    assert (entries[0].logprob, entries[0].rank, entries[0].top) == (None, None, ())
    for position, entry in enumerate(entries[1:]):
        row = want[position]
        assert entry.logprob == pytest.approx(row[entry.token], abs=1e-5)
        assert entry.rank == 1 + (row > row[entry.token]).sum()
        top = 2 if position + 1 < len(PROMPT) else 3
        np.testing.assert_allclose([p for _, p in entry.top], np.sort(row)[::-1][:top], atol=1e-5)


def test_prompt_logprobs_of_a_short_prompt_and_of_several_outputs(model):
    with new_engine(model) as engine:
        params = SamplingParams(max_tokens=2, prompt_logprobs=0, n=2)
        outputs = run(engine, [([5], params)])
    assert [entry.token for entry in outputs["0", 0][0].prompt_logprobs] == [5]
    assert outputs["0", 1][0].prompt_logprobs == ()
    assert outputs["0", 0][0].logprobs == ()


def test_stop_tokens_end_the_answer(model):
    with new_engine(model) as engine:
        tokens = generated(engine, max_tokens=8)
        end = tokens.index(tokens[3])
        params = SamplingParams(max_tokens=8, stop_tokens=(tokens[3],), ignore_eos=True)
        outputs = list(engine.generate(PROMPT, params))
    assert tokens_of(outputs) == tokens[: end + 1]
    assert outputs[-1].finish_reason == "stop"


def test_the_text_of_a_stop_token_is_not_part_of_the_answer():
    model = make_model(tokenizer=Tokenizer(), vocab_size=len(PIECES))
    params = {"max_tokens": 30, "temperature": 1, "seed": 5}
    with new_engine(model) as engine:
        whole = list(engine.generate([1, 2, 3], SamplingParams(**params)))
        tokens = tokens_of(whole)
        stop = tokens[12]
        end = tokens.index(stop)
        outputs = list(engine.generate([1, 2, 3], SamplingParams(**params, stop_tokens=(stop,))))
    assert tokens_of(outputs) == tokens[: end + 1]
    text = b"".join(PIECES[token] for token in tokens[:end]).decode(errors="replace")
    assert "".join(out.text for out in outputs) == text


def test_a_bias_forces_and_bans(model):
    with new_engine(model) as engine:
        assert generated(engine, max_tokens=4, logit_bias={7: 100}) == [7] * 4
        first = generated(engine, max_tokens=1)[0]
        assert first not in generated(engine, max_tokens=8, logit_bias={first: -100})


def test_what_does_not_fit_the_vocabulary_is_refused(model):
    with new_engine(model) as engine:
        for changes in ({"stop_tokens": (77,)}, {"logit_bias": {77: 1}}, {"n": 1000}):
            with pytest.raises(UsageError):
                engine.submit(Request("a", (1,), SamplingParams(**changes)))
        assert not engine.has_work
