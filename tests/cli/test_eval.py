"""`hasten eval` on a tiny model: figures that must come out, and what is refused."""

import json
import shutil

import pytest

SMALL = ("--tokens", "256", "--threads", "1")


def evaluate(hasten, *arguments):
    result = hasten("eval", *arguments, *SMALL, "--json", "-")
    assert result.status == 0, result.err
    return json.loads(result.out)


def test_a_model_in_float32_equals_itself(hasten, tiny_model):
    report = evaluate(hasten, str(tiny_model), "--weights", "f32", "--kv", "f32")
    accuracy = report["accuracy"]
    assert report["schema"] == "hasten.eval/1"
    assert accuracy["kl_divergence"]["high"] == 0
    assert accuracy["perplexity_ratio"]["estimate"] == 1
    assert accuracy["top1_agreement"]["low"] == 1
    assert report["text"]["context"] == 128
    assert report["text"]["tokens"] == accuracy["tokens"] == 254


def test_fewer_bits_cost_more(hasten, tiny_model):
    costs = [
        evaluate(hasten, str(tiny_model), "--weights", weights)["accuracy"]["kl_divergence"]
        for weights in ("bf16", "int8:32", "int4:32")
    ]
    assert 0 < costs[0]["estimate"] < costs[1]["estimate"] < costs[2]["estimate"]
    assert all(cost["low"] <= cost["estimate"] <= cost["high"] for cost in costs)
    assert costs[1]["high"] < costs[2]["low"]


def test_the_table_names_what_was_compared_and_how(hasten, tiny_model):
    out = hasten("eval", str(tiny_model), *SMALL, "--weights", "int8").out
    for expected in (
        "tiny (int8, KV bf16) against tiny in float32",
        "KL divergence",
        "top-1 agreement",
        "254 tokens of pydoc_data.topics, second half in windows of 128",
        "kl_divergence = mean of sum_v",
    ):
        assert expected in out


def test_an_artefact_is_compared_with_what_it_was_made_of(hasten, tiny_model, tmp_path):
    source, artefact = tmp_path / "source", tmp_path / "fast"
    shutil.copytree(tiny_model, source)
    made = hasten(
        *("optimize", str(source), "-o", str(artefact), "--weights", "int8:32", "--quick"),
        *("--input-len", "16", "--output-len", "4", "--tokens", "256", "--threads", "1"),
        *("--budget-kl", "100"),
    )
    assert made.status == 0, made.err
    report = evaluate(hasten, str(artefact))
    assert report["reference"]["path"] == str(source)
    assert report["accuracy"]["kl_divergence"]["estimate"] >= 0

    (source / "config.json").write_text((source / "config.json").read_text() + "\n")
    result = hasten("eval", str(artefact), *SMALL)
    assert result.status == 2
    assert "has changed since" in result.err
    shutil.rmtree(source)
    result = hasten("eval", str(artefact), *SMALL)
    assert result.status == 2
    assert "--against" in result.err
    assert hasten("eval", str(artefact), "--against", str(tiny_model), *SMALL).status == 0


def test_models_that_read_text_differently_are_not_compared(hasten, tiny_model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    result = hasten("eval", str(tiny_model), "--against", str(other), *SMALL)
    assert result.status == 2
    assert "different tokens" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "/none.txt"), "cannot read text"),
        (("--tokens", "5"), "--tokens"),
        (("--context", "1"), "--context"),
        (("--context", "4096"), "max_context"),
        (("--weights", "int5"), "not a weight format"),
        (("--weights", "int4:64"), "groups that divide"),
        (("--against", "/none"), "none"),
    ],
)
def test_wrong_use_is_one_line(hasten, tiny_model, arguments, message):
    result = hasten("eval", str(tiny_model), *arguments)
    assert result.status in (1, 2)
    assert message in result.err
    assert result.err.count("\n") == 1
    assert result.out == ""


def test_a_text_of_the_user_that_is_too_short(hasten, tiny_model, tmp_path):
    text = tmp_path / "note.txt"
    text.write_text("short")
    result = hasten("eval", str(tiny_model), "--text", str(text))
    assert result.status == 2
    assert "gives 4 tokens to score" in result.err


def test_a_text_with_fewer_tokens_than_wanted_is_used_and_said(hasten, tiny_model, tmp_path):
    text = tmp_path / "note.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 10)
    result = hasten("eval", str(tiny_model), "--text", str(text), "--threads", "1")
    assert result.status == 0
    assert "note.txt holds only" in result.err
    assert "tokens of note.txt" in result.out


@pytest.mark.model
def test_smollm2_as_its_file_carries_it_stays_close_to_float32(hasten):
    result = hasten("eval", "smollm2", "--tokens", "512", "--json", "-")
    accuracy = json.loads(result.out)["accuracy"]
    assert accuracy["kl_divergence"]["high"] < 0.01
    assert accuracy["top1_agreement"]["estimate"] > 0.94
    assert 0.97 < accuracy["perplexity_ratio"]["estimate"] < 1.03
