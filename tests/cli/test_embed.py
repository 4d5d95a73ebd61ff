from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = pytest.mark.model

TEXTS = ("A man is eating food.", "A man is eating a piece of bread.", "It rains.")


@pytest.fixture(scope="module")
def vectors():
    from hasten.generation.embedding import Embedder
    from hasten.models import load_model

    with Embedder(load_model("minilm")) as embedder:
        return embedder.embed(TEXTS)


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_pipe_gets_json_lines(hasten, vectors):
    result = hasten("embed", "minilm", *TEXTS)
    assert result.status == 0
    lines = lines_of(result.out)
    assert [(line["index"], line["text"]) for line in lines] == list(enumerate(TEXTS))
    assert [line["tokens"] for line in lines] == [8, 11, 5]
    got = np.array([line["embedding"] for line in lines], np.float32)
    np.testing.assert_array_equal(got, vectors)


def test_a_terminal_gets_similarities(hasten, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    result = hasten("embed", "minilm", *TEXTS)
    assert result.status == 0
    assert "Cosine similarity" in result.out
    assert "0.755" in result.out
    assert "3 texts, 24 tokens, 384 dimensions" in result.out
    result = hasten("embed", "minilm", *(TEXTS * 5))
    assert "15 texts, 120 tokens" in result.out
    assert "0.755" not in result.out


@pytest.mark.parametrize("suffix", [".npy", ".jsonl"])
def test_files_in_and_out(hasten, tmp_path, vectors, suffix):
    (tmp_path / "texts.txt").write_text("\r\n".join(TEXTS) + "\n")
    output = tmp_path / f"vectors{suffix}"
    file = str(tmp_path / "texts.txt")
    result = hasten("embed", "minilm", "--file", file, "--output", str(output))
    assert (result.status, result.out) == (0, "")
    assert "3 texts, 24 tokens" in result.err
    if suffix == ".npy":
        got = np.load(output, allow_pickle=False)
    else:
        lines = lines_of(output.read_text())
        got = np.array([line["embedding"] for line in lines], np.float32)
    np.testing.assert_array_equal(got, vectors)


def test_stdin(hasten, monkeypatch):
    for arguments in ((), ("--file", "-")):
        pipe = SimpleNamespace(buffer=io.BytesIO("a\n\nü\n".encode()), isatty=lambda: False)
        monkeypatch.setattr("sys.stdin", pipe)
        result = hasten("embed", "minilm", *arguments)
        assert [line["text"] for line in lines_of(result.out)] == ["a", "", "ü"]


def test_json(hasten):
    result = hasten(
        "embed", "minilm", "a", "b", "--json", "-", "--dimensions", "8", "--no-normalize"
    )
    document = json.loads(result.out)
    assert document["schema"] == "hasten.embed/1"
    assert (document["texts"], document["tokens"], document["dimensions"]) == (2, 6, 8)
    assert (document["pooling"], document["normalized"]) == ("mean", False)
    assert [len(one["embedding"]) for one in document["data"]] == [8, 8]


def test_prefix_and_truncation(hasten, vectors):
    result = hasten("embed", "minilm", "is eating food.", "--prefix", "A man ")
    (line,) = lines_of(result.out)
    np.testing.assert_array_equal(np.array(line["embedding"], np.float32), vectors[0])
    (line,) = lines_of(hasten("embed", "minilm", "word " * 300, "--truncate").out)
    assert line["tokens"] == 256


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("word " * 300,), 1, "text 1 has 302 tokens; allowed: up to 256"),
        (("a", "--prompt", "query"), 2, "no prompt 'query'"),
        (("a", "--prompt", "x", "--prefix", "y"), 2, "say the same twice"),
        (("a", "--file", "b"), 2, "either TEXT or --file"),
        (("--file", "/no/such/file"), 2, "cannot read '/no/such/file'"),
        (("a", "--output", "vectors.txt"), 2, "neither .npy nor .jsonl"),
        (("a", "--output", "/no/such/place/v.npy"), 2, "cannot be written"),
        (("a", "--dimensions", "385"), 2, "allowed: 1 to 384"),
        (("a", "--max-context", "513"), 2, "allowed: 1 to 512"),
    ],
)
def test_errors(hasten, arguments, status, words):
    result = hasten("embed", "minilm", *arguments)
    assert result.status == status
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert words in result.err


def test_nothing_to_embed(hasten, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    assert "nothing to embed" in hasten("embed", "minilm").err
    (tmp_path / "empty").write_text("")
    assert "holds no text" in hasten("embed", "minilm", "--file", str(tmp_path / "empty")).err
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert "not UTF-8 at byte 3" in hasten("embed", "minilm", "--file", str(tmp_path / "latin")).err


@pytest.mark.parametrize("command", ["run", "bench", "eval"])
def test_commands_that_need_text_say_what_to_use(hasten, command):
    arguments = ("hi",) if command == "run" else ()
    result = hasten(command, "minilm", *arguments)
    assert result.status == 2
    assert result.err.endswith("gives embeddings, not text; use `hasten embed`\n")


def test_info(hasten):
    result = hasten("info", "minilm", "--no-probe")
    assert result.status == 0
    assert "bert: 6 layers, hidden 384" in result.out
    assert "22.6 M: embedding 11.9 M, attention 3.5 M, feed-forward 7.1 M" in result.out


def test_a_decoder_gives_vectors_too(hasten, tiny_model):
    result = hasten("embed", str(tiny_model), "a dog", "a cat")
    lines = lines_of(result.out)
    assert [line["tokens"] for line in lines] == [5, 5]
    assert np.linalg.norm(lines[0]["embedding"]) == pytest.approx(1, abs=1e-6)
