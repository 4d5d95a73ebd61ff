import json

import pytest


def run(hasten, *options):
    return hasten(
        *("ab", "fake", "fake", "--rounds", "8", "--requests", "3", "--warmup", "0"),
        *("--input-len", "8", "--output-len", "4", *options),
    )


def test_both_get_the_same_prompts_in_turns(hasten, world):
    result = run(hasten, "--json", "-")
    assert result.status == 0
    document = json.loads(result.out)
    assert document["schema"] == "hasten.ab/1"
    assert document["requests"] == [24, 24]
    (found,) = document["contrasts"]
    assert (found["metric"], len(found["a"]), len(found["b"])) == ("e2e", 8, 8)
    assert found["verdict"] in ("faster", "slower", "no difference shown")
    assert len(world.engines) == 2
    rounds = [world.prompts[n : n + 6] for n in range(0, 48, 6)]
    assert all(one[:3] == one[3:] for one in rounds)
    assert len({prompt for one in rounds for prompt in one}) == 24


class Server:
    """Keeps what it is asked."""

    def __init__(self):
        self.prompts = []

    def describe(self):
        return {"kind": "server", "model": "m"}

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def send(self, work, answer):
        self.prompts.append(work.prompt)
        answer.arrive(work.output_tokens)


@pytest.mark.parametrize("turned", [False, True])
def test_a_server_and_a_model_here_get_the_same_texts(hasten, world, monkeypatch, turned):
    server = Server()
    monkeypatch.setattr("hasten.measure.targets.choose.open_target", lambda *_: server)
    targets = ["fake", "http://127.0.0.1:9"]
    result = hasten(
        *("ab", *(targets[::-1] if turned else targets), "--rounds", "8", "--requests", "2"),
        *("--warmup", "0", "--input-len", "8", "--output-len", "4"),
    )
    assert result.status == 0
    assert len(server.prompts) == 16
    assert server.prompts == world.prompts


def test_a_table(hasten, world):
    result = run(hasten, "--metric", "output_tokens_per_s", "--rounds", "8")
    assert result.status == 0
    assert "output_tokens_per_s" in result.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rounds", "3"), "3 rounds show nothing"),
        (("--metric", "p99"), "p99"),
        (("--rate", "1", "--concurrency", "2"), "--concurrency and --rate"),
    ],
)
def test_what_cannot_be_compared(hasten, world, options, message):
    result = run(hasten, *options)
    assert result.status == 2
    assert message in result.err
    assert not world.prompts
