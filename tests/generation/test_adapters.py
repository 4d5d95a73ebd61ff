"""Adapters in an engine: loading, naming, sharing, and the same answer always."""

from threading import Thread

import pytest
from tiny import make_model, some_tokens
from tiny_adapters import PROJECTIONS, random_pairs, save_pairs

from hasten.errors import CapacityError, ModelFileError, UsageError
from hasten.generation import Engine
from hasten.types import EngineOptions, Request, SamplingParams

PREFIX = some_tokens(70, seed=5)
PROMPTS = [some_tokens(n, seed=n) for n in (40, 3, 20, 33, 9)]
REQUESTS = [
    ([*PREFIX, *prompt], adapter)
    for prompt, adapter in zip(PROMPTS, ["all", None, "some", "all", "some"], strict=True)
]


@pytest.fixture(scope="module")
def model():
    return make_model(num_layers=3)


@pytest.fixture(scope="module")
def paths(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapters")
    made = {
        "all": random_pairs(model.config, 8, 0),
        "some": random_pairs(model.config, 3, 1, ("q_proj", "down_proj")),
        "high": random_pairs(model.config, 17, 2, PROJECTIONS[:1]),
    }
    return {name: save_pairs(path / name, pairs) for name, pairs in made.items()}


def new_engine(model, paths=None, **options):
    fixed = {"max_context": 160, "threads": 1, "max_adapters": 2, "max_lora_rank": 16}
    engine = Engine(model, EngineOptions(**fixed | options))
    for name in () if paths is None else ("some", "all"):
        engine.load_adapter(name, paths[name])
    return engine


def answers(engine, requests=REQUESTS, **sampling):
    """Tokens of each request, all submitted at once."""
    given = SamplingParams(**{"max_tokens": 48} | sampling)
    for number, (prompt, adapter) in enumerate(requests):
        engine.submit(Request(str(number), tuple(prompt), given, adapter=adapter))
    tokens = {str(number): [] for number in range(len(requests))}
    while engine.has_work:
        for output in engine.step():
            tokens[output.request_id] += output.tokens
    return list(tokens.values())


def test_answers_do_not_depend_on_company(model, paths):
    """Alone, in a mixture, in chunks, from the prefix cache, preempted, by any threads."""
    given = {"weights": "int8:32"}
    with new_engine(model, paths, max_sequences=1, prefix_cache=False, **given) as engine:
        want = answers(engine)
    assert len({tuple(tokens) for tokens in want}) == len(want)
    with new_engine(model, max_adapters=0, **given) as engine:
        assert answers(engine, [REQUESTS[1]]) == [want[1]]
    block = 2 * 3 * 2 * 32 * 32 * 2  # keys and values, layers, heads, padded dimensions, bf16
    for options in (
        {},
        {"chunk": 7, "threads": 3},
        {"fuse": False, "max_sequences": 3},
        {"kv_memory": 12 * block, "prefix_cache": False},
    ):
        with new_engine(model, paths, **given, **options) as engine:
            assert answers(engine) == want, options
            assert answers(engine) == want, options  # now the prefix cache has all of it
            assert ("kv_memory" in options) == (engine.statistics().preemptions > 0)


def test_seeded_samples_neither(model, paths):
    sampling = {"temperature": 1.0, "seed": 3}
    with new_engine(model, paths, max_sequences=1) as engine:
        want = answers(engine, **sampling)
    with new_engine(model, paths, chunk=16, threads=2) as engine:
        assert answers(engine, **sampling) == want


def test_cached_prefixes_belong_to_an_adapter(model, paths):
    def cached(engine, adapter):
        request = Request("one", tuple(PREFIX), SamplingParams(max_tokens=2), adapter=adapter)
        engine.submit(request)
        outputs = []
        while engine.has_work:
            outputs += engine.step()
        return outputs[0].cached_tokens

    with new_engine(model, paths) as engine:
        assert [cached(engine, name) for name in (None, "all", "some")] == [0, 0, 0]
        assert [cached(engine, name) for name in (None, "all", "some")] == [64, 64, 64]
        engine.unload_adapter("all")
        engine.load_adapter("again", paths["all"])  # the same files: the same keys and values
        assert cached(engine, "again") == 64
        engine.unload_adapter("again")
        engine.unload_adapter("some")
        engine.load_adapter("again", paths["some"])
        engine.load_adapter("some", paths["all"])
        want = list(engine.generate(PREFIX, SamplingParams(max_tokens=3), adapter="some"))
        assert cached(engine, "some") == 64
    with new_engine(model, paths) as engine:
        got = list(engine.generate(PREFIX, SamplingParams(max_tokens=3), adapter="all"))
    assert [out.tokens for out in got] == [out.tokens for out in want]


def test_names_and_slots(model, paths):
    with new_engine(model, paths) as engine:
        assert engine.adapters == ("some", "all")
        assert engine.memory["adapters"] > 0
        with pytest.raises(UsageError, match=r"no adapter 'none'.*'some', 'all'"):
            engine.submit(Request("1", (1,), adapter="none"))
        with pytest.raises(UsageError, match="no adapter 'none'"):
            next(engine.score([1], adapter="none"))
        with pytest.raises(UsageError, match="no adapter 'none'"):
            engine.unload_adapter("none")
        with pytest.raises(UsageError, match="loaded already"):
            engine.load_adapter("all", paths["all"])
        with pytest.raises(CapacityError, match="all 2 adapter slots"):
            engine.load_adapter("other", paths["all"])
        engine.unload_adapter("some")
        assert engine.adapters == ("all",)
        with pytest.raises(CapacityError, match=r"rank 17.*up to 16"):
            engine.load_adapter("high", paths["high"])
        with pytest.raises(ModelFileError):
            engine.load_adapter("other", paths["all"] / "nowhere")
        engine.load_adapter("other", paths["some"])
        assert engine.adapters == ("all", "other")
        assert not engine.has_work


def test_engines_without_room_for_adapters(model, paths):
    with new_engine(model, max_adapters=0) as engine:
        assert "adapters" not in engine.memory
        with pytest.raises(UsageError, match="max_adapters"):
            engine.load_adapter("all", paths["all"])
        with pytest.raises(UsageError, match="none is"):
            engine.submit(Request("1", (1,), adapter="all"))
    for wrong in ({"max_adapters": -1}, {"max_lora_rank": 0}, {"lora": "int8"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            new_engine(model, **wrong)


def test_an_adapter_in_use_stays(model, paths):
    with new_engine(model, paths) as engine:
        engine.submit(Request("1", tuple(PREFIX), SamplingParams(max_tokens=4), adapter="all"))
        for _ in range(2):
            with pytest.raises(UsageError, match="1 requests in flight"):
                engine.unload_adapter("all")
            engine.step()
        engine.unload_adapter("some")
        engine.cancel("1")
        engine.step()
        engine.unload_adapter("all")
        assert engine.adapters == ()


def test_adapters_come_and_go_while_others_run(model, paths):
    """Another thread loads and unloads; the answers of this one's requests stay the same."""
    sampling = SamplingParams(max_tokens=60)
    with new_engine(model, paths) as engine:
        want = [out.tokens for out in engine.generate(PREFIX, sampling, adapter="all")]
    with new_engine(model, max_adapters=3) as engine:
        engine.load_adapter("all", paths["all"])
        stop = []

        def churn():
            while not stop:
                engine.load_adapter("x", paths["some"])
                engine.load_adapter("y", paths["all"])
                engine.unload_adapter("x")
                engine.unload_adapter("y")

        thread = Thread(target=churn)
        thread.start()
        got = [out.tokens for out in engine.generate(PREFIX, sampling, adapter="all")]
        stop.append(True)
        thread.join()
    assert got == want


def test_scores_have_adapters(model, paths):
    with new_engine(model, paths, weights="f32", kv="f32", lora="f32") as engine:
        (_, plain), (_, got) = (next(engine.score(PREFIX, adapter=name)) for name in (None, "all"))
    with new_engine(model, paths, executor="reference") as engine:
        (_, want) = next(engine.score(PREFIX, adapter="all"))
    assert abs(got - want).max() < 2e-5 * abs(want).max() < abs(got - plain).max()
