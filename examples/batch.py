"""Several requests at once: each step runs all of them, and greedy answers do not depend on that.

python examples/batch.py
"""

from dataclasses import replace

from hasten.generation import Engine, engine_options
from hasten.models import load_model
from hasten.types import Request, SamplingParams

PROMPTS = ("The sky is blue because", "Paris is the capital of", "Water boils at")


def main() -> None:
    model = load_model("smollm2")
    options = replace(engine_options(model), max_sequences=len(PROMPTS), max_context=256)
    answers = dict.fromkeys(PROMPTS, "")
    with Engine(model, options) as engine:
        for prompt in PROMPTS:
            ids = tuple(model.tokenizer.encode(prompt))
            engine.submit(Request(prompt, ids, SamplingParams(max_tokens=16)))
        while engine.has_work:
            for output in engine.step():
                answers[output.request_id] += output.text
    for prompt, answer in answers.items():
        print(f"{prompt} →{answer!r}")


if __name__ == "__main__":
    main()
