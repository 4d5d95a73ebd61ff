"""A model that was trained, as the packages carry it, asked through each of the clients."""

import anthropic
import ollama
import openai
import pytest
from served_process import SECONDS, Expected, serving_process

QUESTION = [{"role": "user", "content": "Name three fruits."}]

pytestmark = pytest.mark.model


def test_one_question_through_three_clients(tmp_path):
    expected = Expected("smollm2")
    text, tokens, prompt = expected.chat(QUESTION, max_tokens=24)
    assert "Bananas" in text
    options = ("--threads", "1", "--max-context", "512", "--max-sequences", "2")
    with (
        serving_process("smollm2", *options, "--data", tmp_path) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", timeout=SECONDS) as one,
        ollama.Client(server.url, timeout=SECONDS) as other,
        anthropic.Anthropic(base_url=server.url, api_key="-", timeout=SECONDS) as third,
    ):
        first = one.chat.completions.create(
            model="smollm2", messages=QUESTION, temperature=0, max_tokens=24
        )
        assert first.choices[0].message.content == text
        assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (prompt, tokens)
        greedy = {"temperature": 0, "num_predict": 24}
        second = other.chat("smollm2:latest", QUESTION, options=greedy)
        assert second.message.content == text
        assert (second.prompt_eval_count, second.eval_count) == (prompt, tokens)
        with third.messages.stream(
            model="smollm2", messages=QUESTION, max_tokens=24, extra_body={"temperature": 0}
        ) as stream:
            assert "".join(stream.text_stream) == text
            usage = stream.get_final_message().usage
        assert usage.input_tokens + usage.cache_read_input_tokens == prompt
        assert usage.output_tokens == tokens
