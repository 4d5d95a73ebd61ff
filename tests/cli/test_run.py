from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from hasten.types import SamplingParams, Structure


@pytest.fixture
def stdin(monkeypatch):
    """Put text on stdin; `terminal=True` makes it one where a user types these lines."""

    def put(text: str, *, terminal: bool = False) -> None:
        stream = io.StringIO(text)
        stream.isatty = lambda: terminal  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdin", stream)

    return put


def test_one_prompt(hasten, world):
    result = hasten("run", "fake", "Hi")
    assert (result.status, result.out, result.err) == (0, "Hello you\n", "")
    assert world.prompts == ["[user:Hi]>"]
    assert world.sampling == [SamplingParams()]
    assert world.engines[0].closed


def test_system_and_raw(hasten, world):
    hasten("run", "fake", "--system", "Be brief", "Hi")
    hasten("run", "fake", "--raw", "Hi")
    assert world.prompts == ["[system:Be brief][user:Hi]>", "Hi"]


def test_without_a_template_the_prompt_stands_alone(hasten, world):
    world.template = None
    hasten("run", "fake", "Hi")
    assert world.prompts == ["Hi"]
    result = hasten("run", "fake", "--system", "Be brief", "Hi")
    assert result.status == 2
    assert "no chat template" in result.err
    assert hasten("run", "fake", "").status == 2


def test_every_option_arrives(hasten, world):
    arguments = (
        "--temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --seed 7 --stop a --stop b "
        "--max-tokens 5 --threads 1 --kv int8 --weights int8:64 --isa scalar --executor reference "
        "--max-context 50 --no-fuse --max-sequences 3 --kv-memory 1.5MiB --no-prefix-cache"
    )
    assert hasten("run", "fake", "Hi", *arguments.split()).status == 0
    assert world.sampling == [
        SamplingParams(
            max_tokens=5,
            temperature=0.5,
            top_k=3,
            top_p=0.9,
            min_p=0.1,
            seed=7,
            stop=("a", "b"),
        )
    ]
    options = world.engines[0].options
    assert (options.threads, options.kv, options.weights) == (1, "int8", "int8:64")
    assert (options.isa, options.executor) == ("scalar", "reference")
    assert (options.max_context, options.fuse) == (50, False)
    assert (options.max_sequences, options.kv_memory) == (3, 3 << 19)
    assert options.prefix_cache is False


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2 << 30), ("500MB", 500_000_000), ("7 kb", 7000), ("123", 123)]
)
def test_sizes(hasten, world, text, size):
    assert hasten("run", "fake", "Hi", "--kv-memory", text).status == 0
    assert world.engines[0].options.kv_memory == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1e9", "1 parsec", "0", "0.5", "nan"])
def test_what_is_no_size(hasten, world, text):
    result = hasten("run", "fake", "Hi", "--kv-memory", text)
    assert result.status == 2
    assert "is not a size" in result.err


def test_every_way_to_sample_arrives(hasten, world, tmp_path):
    arguments = (
        "--repetition-penalty 1.1 --presence-penalty 0.5 --frequency-penalty -0.5 "
        "--logit-bias 5=2.5 --logit-bias 7=-100 --logprobs 2 --json -"
    )
    assert hasten("run", "fake", "Hi", *arguments.split()).status == 0
    assert world.sampling == [
        SamplingParams(
            repetition_penalty=1.1,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            logit_bias={5: 2.5, 7: -100.0},
            logprobs=2,
        )
    ]


def test_structures_arrive(hasten, world, tmp_path):
    path = tmp_path / "form"
    for option, kind, text in (
        ("--json-schema", "json_schema", '{"type": "object"}'),
        ("--grammar", "grammar", 'start: "a"'),
        ("--regex", "regex", "a|b"),
    ):
        path.write_text(text)
        given = [text] if kind == "regex" else [text, str(path)]
        for value in given:
            assert hasten("run", "fake", "Hi", option, value).status == 0
            assert world.sampling.pop() == SamplingParams(structure=Structure(kind, text))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json-schema", "nowhere"], "'nowhere' is neither a JSON object nor a file"),
        (["--json-schema", "."], "neither a JSON object nor a file"),
        (["--grammar", "x" * 5000], "neither a grammar nor a file"),
        (["--regex", "a", "--grammar", "start: A"], "--regex and --grammar exclude each other"),
        (["--logprobs", "3"], "--logprobs needs --json"),
        (["--logprobs", "21", "--json", "-"], "21"),
        (["--logit-bias", "5"], "'5' is not a token's id, = and a number"),
        (["--logit-bias", "a=1"], "'a=1' is not"),
        (["--repetition-penalty", "0"], "0.01<=x<=100"),
        (["--presence-penalty", "nan"], "nan"),
        (["--frequency-penalty", "3"], "-2.0<=x<=2.0"),
    ],
)
def test_sampling_options_that_are_wrong(hasten, world, arguments, message):
    result = hasten("run", "fake", "Hi", *arguments)
    assert result.status == 2
    assert message in result.err
    assert not world.engines


def test_structures_in_files_that_are_no_text(hasten, world, tmp_path):
    path = tmp_path / "form"
    path.write_bytes(b"ab\xff")
    assert "not UTF-8 at byte 2" in hasten("run", "fake", "Hi", "--grammar", str(path)).err
    path.write_bytes(b" " * 1_048_577)
    assert "larger than" in hasten("run", "fake", "Hi", "--grammar", str(path)).err


def test_an_answer_that_could_not_go_on(hasten, world):
    world.error = "no token of the vocabulary continues the structure"
    result = hasten("run", "fake", "Hi")
    assert (result.status, result.out) == (1, "Hello yo\n")
    assert result.err == f"error: {world.error}\n"
    document = json.loads(hasten("run", "fake", "Hi", "--json", "-").out)
    assert (document["finish_reason"], document["error"]) == ("error", world.error)


def test_log_probabilities_are_in_the_document(hasten, world):
    document = json.loads(hasten("run", "fake", "Hi", "--logprobs", "1", "--json", "-").out)
    assert len(document["logprobs"]) == document["output_tokens"] == 9
    want = {"token": ord("H"), "logprob": -0.5, "rank": 1, "top": [[ord("H"), -0.5]]}
    assert document["logprobs"][0] == want


def test_a_recipe_stands_where_the_user_says_nothing(hasten, world):
    world.recipe = {"settings": {"kv": "int8", "max_context": 77}}
    hasten("run", "fake", "Hi", "--max-context", "60")
    assert world.engines[0].options.kv == "int8"
    assert world.engines[0].options.max_context == 60


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_a_prompt_from_a_pipe(hasten, world, stdin, arguments):
    stdin("two\nlines\n")
    hasten("run", "fake", *arguments)
    assert world.prompts == ["[user:two\nlines]>"]


def test_an_argument_leaves_stdin_alone(hasten, world, stdin):
    stdin("not this")
    hasten("run", "fake", "this")
    assert world.prompts == ["[user:this]>"]


def test_nothing_on_stdin(hasten, world, stdin, monkeypatch):
    stdin("\n")
    assert hasten("run", "fake").err.startswith("error: stdin holds no prompt")
    monkeypatch.setattr(sys, "stdin", None)
    assert hasten("run", "fake").err.startswith("error: there is no PROMPT")
    assert not world.engines


def test_bytes_that_are_no_text(hasten, world):
    result = hasten("run", "fake", "caf\udce9")
    assert result.status == 2
    assert "not UTF-8 at character 3" in result.err


def test_stats_and_json(hasten, world, tmp_path):
    path = tmp_path / "answer.json"
    result = hasten("run", "fake", "Hi", "--stats", "--json", str(path))
    assert result.out == "Hello you\n"
    assert "prompt 10 tokens" in result.err
    assert "then 9 tokens at" in result.err
    document = json.loads(path.read_text())
    assert document["schema"] == "hasten.run/1"
    assert (document["text"], document["finish_reason"]) == ("Hello you", "stop")
    assert (document["prompt_tokens"], document["output_tokens"]) == (10, 9)
    assert document["ttft_s"] >= 0


def test_json_on_stdout_is_json_alone(hasten, world):
    assert json.loads(hasten("run", "fake", "Hi", "--json", "-").out)["text"] == "Hello you"


def test_rates_of_one_token_are_undefined(hasten, world):
    document = json.loads(hasten("run", "fake", "Hi", "--max-tokens", "1", "--json", "-").out)
    assert document["decode_tokens_per_s"] is None


def test_a_shortened_answer_says_so(hasten, world):
    assert hasten("run", "fake", "Hi", "--max-tokens", "3").err == "[ended by --max-tokens 3]\n"
    result = hasten("run", "fake", "Hi", "--max-context", "14")
    assert result.out == "Hell\n"
    assert "ended by the context: 14 tokens" in result.err


def test_a_prompt_too_long_is_refused(hasten, world):
    result = hasten("run", "fake", "x" * 30, "--max-context", "20")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("error: the prompt has 38 tokens and the context holds 20")


def test_ctrl_c_keeps_what_came(hasten, world, tmp_path):
    world.interrupt_at = 3
    path = tmp_path / "answer.json"
    result = hasten("run", "fake", "Hi", "--json", str(path))
    assert (result.status, result.out) == (130, "Hel\n")
    assert result.err.strip() == "interrupted"
    assert json.loads(path.read_text())["finish_reason"] == "cancelled"


def chat(hasten, stdin, *lines: str, arguments=()):
    stdin("".join(f"{line}\n" for line in lines), terminal=True)
    return hasten("run", "fake", *arguments)


def test_a_chat_remembers(hasten, world, stdin):
    result = chat(hasten, stdin, "one", "", "two", arguments=["--system", "S"])
    assert result.status == 0
    assert world.prompts == [
        "[system:S][user:one]>",
        "[system:S][user:one][assistant:Hello you][user:two]>",
    ]
    assert len(world.engines) == 1


def test_chat_commands(hasten, world, stdin):
    result = chat(hasten, stdin, "/help", "one", "/clear", "two", "/fly", "/exit", "three")
    assert world.prompts == ["[user:one]>", "[user:two]>"]
    assert "Ctrl-C  stop the answer" in result.err
    assert "unknown command '/fly'" in result.err


def test_ctrl_c_stops_the_answer_and_not_the_chat(hasten, world, stdin):
    world.interrupt_at = 2
    result = chat(hasten, stdin, "one", "two")
    assert result.status == 0
    assert result.err.count("[stopped]") == 2
    assert world.prompts[1] == "[user:one][assistant:He][user:two]>"


def test_ctrl_c_at_the_prompt_does_not_leave(hasten, world, monkeypatch):
    lines = iter([KeyboardInterrupt(), "one", EOFError()])

    def answer(prompt: str) -> str:
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    result = hasten("run", "fake")
    assert result.status == 0
    assert world.prompts == ["[user:one]>"]
    assert "/exit leaves" in result.err


def test_a_full_context_is_said_and_the_conversation_stays(hasten, world, stdin):
    result = chat(hasten, stdin, "one", "x" * 60, "two", arguments=["--max-context", "60"])
    assert "error: the prompt has" in result.err
    assert "the context holds 60" in result.err
    assert "/clear forgets" in result.err
    assert world.prompts[2] == "[user:one][assistant:Hello you][user:two]>"


def test_a_chat_without_template_says_that_it_forgets(hasten, world, stdin):
    world.template = None
    result = chat(hasten, stdin, "one", "two")
    assert "remembers none" in result.err
    assert world.prompts == ["one", "two"]


def test_a_chat_writes_no_json(hasten, world, stdin):
    result = chat(hasten, stdin, "one", arguments=["--json", "-"])
    assert result.status == 2
    assert "chat has many answers" in result.err


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hasten", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.model
def test_smollm2_answers_in_a_process_of_its_own():
    done = call("run", "smollm2", "What is 2 + 2?", "--max-tokens", "12")
    assert done.returncode == 0
    assert "4" in done.stdout


@pytest.mark.model
def test_smollm2_answers_in_a_form():
    form = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    schema = json.dumps(form | {"additionalProperties": False})
    done = call("run", "smollm2", "What is 2 + 2?", "--json-schema", schema, "--max-tokens", "40")
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert list(answer) == ["sum"]
    assert isinstance(answer["sum"], int)  # which one hangs on the rounding of the processor


@pytest.mark.model
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--isa", "mmx"], 2, "instruction set 'mmx' is unknown"),
        (["--threads", "1000"], 2, "threads is 1000"),
        (["--max-context", "9999999"], 2, "max_context is 9999999"),
        (["--max-context", "8"], 1, "the context holds 8"),
        (["--weights", "int4:512"], 2, "int4:512"),
        (["--regex", "(a"], 2, "unclosed group"),
        (["--logit-bias", "99999=1"], 2, "logit_bias holds the token 99999"),
    ],
)
def test_what_smollm2_cannot_do_is_one_line(arguments, status, message):
    done = call("run", "smollm2", "What is 2 + 2?", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.model
def test_starting_a_run_does_not_import_what_it_does_not_need():
    code = (
        "import sys\n"
        "from hasten.cli.main import main\n"
        "main(['run', 'smollm2', 'Hi', '--max-tokens', '1'])\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.splitlines())
    assert not {"rich", "matplotlib", "torch", "transformers", "gguf", "psutil"} & loaded
