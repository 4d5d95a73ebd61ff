"""Answers a prompt from Python, token by token.

python examples/generate.py smollm2 "Why is the sky blue?"
"""

import sys

from hasten.generation import Engine, engine_options
from hasten.models import load_model
from hasten.types import SamplingParams


def main(name: str = "smollm2", question: str = "Why is the sky blue?") -> None:
    model = load_model(name)
    if model.chat_template is None:
        ids = model.tokenizer.encode(question)
    else:
        text = model.chat_template.render([{"role": "user", "content": question}])
        ids = model.tokenizer.encode(text, add_special=False)
    with Engine(model, engine_options(model)) as engine:
        for output in engine.generate(ids, SamplingParams(max_tokens=64)):
            print(output.text, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
