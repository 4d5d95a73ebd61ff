"""The life of requests in an engine."""

import threading

import numpy as np
import pytest
from engines import PROMPT, generated, new_engine
from letters import PIECES, Tokenizer
from tiny import make_model, some_tokens

from hasten import _native
from hasten.errors import CapacityError, UnsupportedModelError, UsageError
from hasten.generation import Engine, engine_options
from hasten.generation.native import choose_isa, rival_isas
from hasten.types import EngineOptions, Request, SamplingParams


@pytest.fixture(scope="module")
def model():
    return make_model()


def run_all(engine):
    """Outputs of every step until the engine has no work, by request."""
    outputs = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def test_greedy_takes_the_likeliest_token(model):
    with new_engine(model) as engine:
        tokens = generated(engine, max_tokens=12)
        assert len(tokens) == 12
        logits = np.concatenate([rows for _, rows in engine.score([*PROMPT, *tokens])])
    assert logits[len(PROMPT) - 1 : -1].argmax(axis=1).tolist() == tokens


def test_an_answer_ends_at_its_limit(model):
    with new_engine(model) as engine:
        outputs = list(engine.generate(PROMPT, SamplingParams(max_tokens=3)))
    assert [out.finish_reason for out in outputs] == [None, None, "length"]
    assert all(len(out.tokens) == 1 and out.model_seconds > 0 for out in outputs)


def test_an_answer_ends_when_the_context_is_full(model):
    with new_engine(model, max_context=16) as engine:
        outputs = list(engine.generate(PROMPT, SamplingParams(max_tokens=100)))
    assert len(outputs) == 6
    assert outputs[-1].finish_reason == "length"


def test_an_answer_ends_at_an_end_token():
    plain = make_model()
    with new_engine(plain) as engine:
        tokens = generated(engine, max_tokens=8)
    end = make_model(eos_ids=(tokens[3],))
    first = tokens.index(tokens[3])
    with new_engine(end) as engine:
        outputs = list(engine.generate(PROMPT, SamplingParams(max_tokens=8)))
        assert [t for out in outputs for t in out.tokens] == tokens[: first + 1]
        assert outputs[-1].finish_reason == "stop"
        assert generated(engine, max_tokens=8, ignore_eos=True) == tokens


def test_prompts_that_do_not_fit(model):
    with new_engine(model, max_context=16) as engine:
        with pytest.raises(CapacityError, match=r"20 tokens.*16"):
            engine.submit(Request("a", tuple(some_tokens(20))))
        with pytest.raises(CapacityError):
            engine.submit(Request("a", tuple(some_tokens(16))))
        with pytest.raises(CapacityError):
            next(engine.score(some_tokens(17)))
        assert not engine.has_work
        assert len(generated(engine, some_tokens(15), max_tokens=9)) == 1
        assert sum(len(rows) for _, rows in engine.score(some_tokens(16))) == 16


@pytest.mark.parametrize("prompt", [(), (77,), (-1,), (3, 10**9)])
def test_prompts_that_are_wrong(model, prompt):
    with new_engine(model) as engine, pytest.raises(UsageError):
        engine.submit(Request("a", prompt))


def test_sampling_that_is_wrong(model):
    with new_engine(model) as engine:
        with pytest.raises(UsageError, match="top_p"):
            engine.submit(Request("a", (1,), SamplingParams(top_p=2)))
        with pytest.raises(UsageError, match="tokenizer"):
            engine.submit(Request("a", (1,), SamplingParams(stop=("x",))))


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_cancel_frees_everything(model, steps):
    with new_engine(model, max_sequences=2, chunk=4) as engine:
        for name in "abc":
            engine.submit(Request(name, tuple(PROMPT), SamplingParams(max_tokens=50)))
        for _ in range(steps):
            engine.step()
        for name in ("a", "b", "c", "unknown"):
            engine.cancel(name)
        assert engine.step() == []
        assert not engine.has_work
        # Only if all blocks are free, two whole contexts fit.
        texts = [engine.score(some_tokens(64)), engine.score(some_tokens(64, seed=1))]
        assert all(len(next(text)[1]) == 4 for text in texts)


def test_cancelling_one_leaves_the_others_as_they_were(model):
    prompts = [some_tokens(n, seed=n) for n in (5, 9, 3)]
    with new_engine(model, max_sequences=3) as engine:
        alone = [generated(engine, prompt, max_tokens=20) for prompt in prompts]
        for i, prompt in enumerate(prompts):
            engine.submit(Request(str(i), tuple(prompt), SamplingParams(max_tokens=20)))
        outputs = [out for _ in range(5) for out in engine.step()]
        engine.cancel("1")
        outputs += [out for outs in run_all(engine).values() for out in outs]
    for name in ("0", "2"):
        tokens = [t for out in outputs if out.request_id == name for t in out.tokens]
        assert tokens == alone[int(name)]


def test_a_cancelled_request_yields_nothing_more(model):
    with new_engine(model, max_sequences=1) as engine:
        for name in ("running", "waiting", "other"):
            engine.submit(Request(name, tuple(PROMPT), SamplingParams(max_tokens=5)))
        engine.step()
        engine.cancel("running")
        engine.cancel("waiting")
        engine.cancel("waiting")
        assert set(run_all(engine)) == {"other"}
        assert engine.statistics().finished == {"cancelled": 2, "length": 1}
        engine.cancel("other")
        assert not engine.has_work


def test_an_id_is_free_again_after_the_end(model):
    with new_engine(model) as engine:
        request = Request("a", tuple(PROMPT), SamplingParams(max_tokens=2))
        engine.submit(request)
        with pytest.raises(UsageError, match="'a' is in flight"):
            engine.submit(request)
        run_all(engine)
        engine.submit(request)
        engine.cancel("a")
        engine.step()
        engine.submit(request)
        assert len(run_all(engine)["a"]) == 2


def test_deadlines_end_requests(model, monkeypatch):
    now = 100.0
    monkeypatch.setattr("hasten.generation.engine.monotonic", lambda: now)
    with new_engine(model, max_sequences=1) as engine:
        sampling = SamplingParams(max_tokens=50)
        for name, deadline in (("running", 110.0), ("waiting", 105.0), ("never", None)):
            engine.submit(Request(name, tuple(PROMPT), sampling, deadline=deadline))
        assert [out.request_id for out in engine.step()] == ["running"]
        now = 105.0
        late, _ = engine.step()
        assert (late.request_id, late.tokens, late.finish_reason) == ("waiting", (), "deadline")
        now = 111.0
        first, second = engine.step()
        assert (first.request_id, first.finish_reason) == ("running", "deadline")
        assert (second.request_id, second.finish_reason) == ("never", None)
        assert len(run_all(engine)["never"]) == 49
        assert engine.statistics().finished == {"deadline": 2, "length": 1}
        with pytest.raises(UsageError, match="nan"):
            engine.submit(Request("a", (1,), deadline=float("nan")))


def test_text_held_back_comes_with_the_deadline(monkeypatch):
    now = 0.0
    monkeypatch.setattr("hasten.generation.engine.monotonic", lambda: now)
    model = make_model(tokenizer=Tokenizer(), vocab_size=len(PIECES))
    sampling = SamplingParams(max_tokens=30, temperature=1, seed=5, stop=("no such text",))
    with new_engine(model) as engine:
        engine.submit(Request("a", (1, 2, 3), sampling, deadline=1.0))
        outputs = [engine.step()[0] for _ in range(8)]
        now = 1.0
        outputs += engine.step()
    pieces = b"".join(PIECES[t] for out in outputs for t in out.tokens)
    assert "".join(out.text for out in outputs) == pieces.decode(errors="replace")


def test_loops_side_by_side_lose_nothing(model):
    with new_engine(model, max_sequences=3) as engine:
        want = [generated(engine, some_tokens(n), max_tokens=9) for n in (5, 7)]
        engine.submit(Request("own", tuple(PROMPT), SamplingParams(max_tokens=4)))
        loops = [engine.generate(some_tokens(n), SamplingParams(max_tokens=9)) for n in (5, 7)]
        found = [[], []]
        for outputs in zip(*loops, strict=True):
            for mine, output in zip(found, outputs, strict=True):
                mine.extend(output.tokens)
        assert found == want
        assert sum(len(out.tokens) for out in run_all(engine)["own"]) == 4


def test_other_threads_submit_and_cancel(model):
    """One thread drives; the answers are those of one after another."""
    prompts = [some_tokens(3 + n, seed=n) for n in range(24)]
    sampling = SamplingParams(max_tokens=6)
    with new_engine(model, max_sequences=4) as engine:
        want = [generated(engine, prompt, max_tokens=6) for prompt in prompts]
        found = {}

        def ask(numbers):
            for number in numbers:
                engine.submit(Request(str(number), tuple(prompts[number]), sampling))
                if number % 4 == 0:
                    engine.cancel(str(number))

        threads = [threading.Thread(target=ask, args=(range(n, 24, 3),)) for n in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) or engine.has_work:
            if engine.wait(0.01):
                for output in engine.step():
                    found.setdefault(output.request_id, []).extend(output.tokens)
        for thread in threads:
            thread.join()
        assert engine.statistics().kv_blocks_used == 0
    for number, tokens in enumerate(want):
        if number % 4:
            assert found[str(number)] == tokens
        else:
            assert found.get(str(number), []) == tokens[: len(found.get(str(number), []))]


def test_waiting_for_work(model):
    with new_engine(model) as engine:
        assert not engine.wait(0)
        thread = threading.Timer(
            0.01, engine.submit, [Request("a", (1,), SamplingParams(max_tokens=1))]
        )
        thread.start()
        assert engine.wait(60)
        thread.join()
        run_all(engine)
        assert not engine.wait(0)


def test_statistics(model):
    with new_engine(model, max_sequences=2, kv_memory=10**6) as engine:
        total = engine.statistics().kv_blocks
        assert total > 4
        for name in "abc":
            engine.submit(Request(name, tuple(some_tokens(40)), SamplingParams(max_tokens=3)))
        engine.step()
        now = engine.statistics()
        assert (now.running, now.waiting, now.steps, now.output_tokens) == (1, 2, 1, 1)
        outputs = run_all(engine)
        done = engine.statistics()
    assert [outputs[name][0].cached_tokens for name in "bc"] == [32, 32]
    assert all(out.cached_tokens == 0 for name in "bc" for out in outputs[name][1:])
    assert (done.running, done.waiting, done.kv_blocks_used) == (0, 0, 0)
    assert (done.kv_blocks, done.kv_blocks_cached) == (total, 1)
    assert (done.prompt_tokens, done.cached_tokens, done.output_tokens) == (120, 64, 9)
    assert (done.finished, done.preemptions) == ({"length": 3}, 0)


def test_forgotten_prefixes_are_computed_again(model):
    with new_engine(model) as engine:
        generated(engine, some_tokens(40), max_tokens=1)
        engine.forget_prefixes()
        assert engine.statistics().kv_blocks_cached == 0
        output = next(engine.generate(some_tokens(40)))
        assert output.cached_tokens == 0


def test_leaving_generate_early_cancels(model):
    with new_engine(model) as engine:
        for _ in engine.generate(PROMPT, SamplingParams(max_tokens=50)):
            break
        assert not engine.has_work
        assert len(next(engine.score(some_tokens(64)))[1]) == 64


def test_more_requests_than_fit_run_after_one_another(model):
    with new_engine(model, max_sequences=2) as engine:
        for i in range(7):
            engine.submit(Request(str(i), tuple(PROMPT), SamplingParams(max_tokens=3 + i)))
        outputs = run_all(engine)
    assert {name: len(outs) for name, outs in outputs.items()} == {str(i): 3 + i for i in range(7)}
    assert all(outs[-1].finish_reason == "length" for outs in outputs.values())


def texts(sampling, eos=()):
    """An engine whose tokens are pieces of text; the answer and its last output."""
    model = make_model(tokenizer=Tokenizer(eos), vocab_size=len(PIECES))
    with new_engine(model) as engine:
        outputs = list(engine.generate([1, 2, 3], sampling))
    return "".join(out.text for out in outputs), outputs


def test_texts_join_to_the_answer():
    answer, outputs = texts(SamplingParams(max_tokens=30, temperature=1, seed=5))
    pieces = b"".join(PIECES[t] for out in outputs for t in out.tokens)
    assert answer == pieces.decode(errors="replace")
    assert outputs[-1].finish_reason == "length"


def test_stop_strings_end_the_answer():
    sampling = SamplingParams(max_tokens=30, temperature=1, seed=5)
    whole, _ = texts(sampling)
    stop = whole[7:10]
    answer, outputs = texts(SamplingParams(max_tokens=30, temperature=1, seed=5, stop=(stop,)))
    assert answer == whole[: whole.find(stop)]
    assert outputs[-1].finish_reason == "stop"


def test_end_tokens_of_the_tokenizer_count_too():
    whole, outputs = texts(SamplingParams(max_tokens=30, temperature=1, seed=5))
    tokens = [t for out in outputs for t in out.tokens]
    end = tokens[9]
    answer, outputs = texts(SamplingParams(max_tokens=30, temperature=1, seed=5), eos=[end])
    assert [t for out in outputs for t in out.tokens] == tokens[: tokens.index(end) + 1]
    assert outputs[-1].finish_reason == "stop"
    assert whole.startswith(answer.rstrip("\ufffd"))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"executor": "gpu"}, "executor"),
        ({"kv": "f16"}, "kv"),
        ({"threads": 0}, "threads"),
        ({"threads": 10**6}, "threads"),
        ({"max_sequences": 0}, "max_sequences"),
        ({"chunk": 0}, "chunk"),
        ({"kv_memory": 0}, "kv_memory"),
        ({"prefill_stretch": 0.5}, "prefill_stretch"),
        ({"max_context": 0}, "max_context"),
        ({"max_context": 257}, "max_context"),
        ({"isa": "sse"}, "sse"),
        ({"weights": "int5"}, "int5"),
    ],
)
def test_options_out_of_range(model, options, name):
    with pytest.raises(UsageError, match=name):
        new_engine(model, **options)


def test_a_cache_larger_than_memory():
    model = make_model(max_position=1 << 27, num_layers=1)
    with pytest.raises(CapacityError, match="GiB"):
        new_engine(model, max_context=1 << 27, max_sequences=4096, chunk=4096)


def test_the_context_is_the_models_own_at_most():
    with Engine(make_model(max_position=100), EngineOptions(threads=1)) as engine:
        assert engine.context == 100
    with Engine(make_model(max_position=100000), EngineOptions(threads=1)) as engine:
        assert engine.context == 8192


def test_what_an_engine_says_of_itself(model):
    with new_engine(model, weights="int8:32", threads=2) as engine:
        assert engine.isa in _native.isas()
        assert engine.threads == 2
        assert engine.formats["lm_head.weight"] == "int8:32"
        assert all(engine.memory[part] > 0 for part in ("weights", "kv_cache", "buffers"))


def test_the_instruction_set_can_be_forced(monkeypatch):
    for isa in _native.isas():
        assert choose_isa(isa) == isa
        monkeypatch.setenv("HASTEN_ISA", isa)
        assert choose_isa(None) == isa
    monkeypatch.setenv("HASTEN_ISA", "vax")
    with pytest.raises(UsageError, match="'vax' is unknown"):
        choose_isa(None)
    monkeypatch.delenv("HASTEN_ISA")
    assert choose_isa(None) == _native.isas()[0]
    for isa in set(_native.compiled_isas()) - set(_native.isas()):
        with pytest.raises(UsageError, match="not available on this machine"):
            choose_isa(isa)


def test_options_come_from_the_recipe_unless_given(model):
    artefact = make_model()
    artefact.recipe = {"settings": {"weights": "int8:32", "kv": "int8", "threads": 4096, "x": 1}}
    options = engine_options(artefact, kv="f32", chunk=None)
    assert (options.weights, options.kv, options.chunk) == ("int8:32", "f32", 512)
    assert 1 <= options.threads < 4096
    assert engine_options(model) == EngineOptions()


def test_the_instruction_set_of_a_recipe_is_used_where_it_is(model, monkeypatch):
    monkeypatch.delenv("HASTEN_ISA", raising=False)
    artefact = make_model()
    last = _native.isas()[-1]
    for named, used in ((last, last), ("of another processor", None)):
        artefact.recipe = {"settings": {"isa": named, "fuse": False}}
        options = engine_options(artefact)
        assert (options.isa, options.fuse) == (used, False)
    artefact.recipe = {"settings": {"isa": last}}
    monkeypatch.setenv("HASTEN_ISA", _native.isas()[0])
    assert engine_options(artefact).isa is None


def test_rivals_of_the_best_instruction_set_have_vectors(monkeypatch):
    monkeypatch.setattr(_native, "isas", lambda: ["avx512", "avx2", "scalar"])
    monkeypatch.delenv("HASTEN_ISA", raising=False)
    assert rival_isas() == ["avx2"]
    monkeypatch.setenv("HASTEN_ISA", "avx2")
    assert rival_isas() == []


def test_the_reference_executor_answers_alike(model):
    with new_engine(model, executor="reference") as engine:
        want = generated(engine, max_tokens=10)
    with new_engine(model, weights="f32", kv="f32") as engine:
        assert generated(engine, max_tokens=10) == want


def test_a_score_that_holds_the_cache_is_named():
    with Engine(make_model(), EngineOptions(max_context=64, max_sequences=1)) as engine:
        scores = engine.score([1, 2, 3] * 15)
        next(scores)
        with pytest.raises(CapacityError, match=r"score\(\)"):
            next(engine.generate([1, 2], SamplingParams(max_tokens=40)))
        scores.close()
        assert (
            len(list(engine.generate([1, 2], SamplingParams(max_tokens=4, ignore_eos=True)))) == 4
        )


def test_heads_that_are_too_wide():
    with pytest.raises(UnsupportedModelError, match="514"):
        Engine(make_model(head_dim=514))
