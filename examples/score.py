"""How surprising a text is to a model, token by token: the logits that accuracy is measured with.

python examples/score.py smollm2 "The capital of France is Paris."
"""

import sys

import numpy as np

from hasten.generation import Engine, engine_options
from hasten.models import load_model


def main(name: str = "smollm2", text: str = "The capital of France is Paris.") -> None:
    model = load_model(name)
    ids = model.tokenizer.encode(text)
    with Engine(model, engine_options(model)) as engine:
        logits = np.concatenate([rows for _, rows in engine.score(ids)]).astype(np.float64)
    for row, token in zip(logits, ids[1:], strict=False):
        loss = np.logaddexp.reduce(row) - row[token]
        print(f"{loss:6.2f} nats  {model.tokenizer.decode([token])!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
