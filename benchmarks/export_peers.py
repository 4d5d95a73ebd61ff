"""What other programs make of exported artefacts, beside what Hasten makes of the artefacts.

    python benchmarks/export_peers.py --install
    python benchmarks/export_peers.py [--peer vllm] [--only WORD] [--json FILE]

Each case (`export_cases.py`) is one export and one reader. Where the reader loads it: whether it
cuts prompts into the same tokens; how long its greedy text is that of Hasten on the artefact, and,
where they part, how far apart the two tokens are for Hasten in float32; and the KL divergence from
that float32 on `pydoc_data.topics`. Where it does not, its own error. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from export_cases import CASES, Case, Files
from numpy.typing import NDArray
from peers_accuracy import PeerScorer
from peers_environment import PEERS, find_python, install
from peers_process import PeerError, PeerProcess

from hasten.errors import HastenError
from hasten.generation import Engine, engine_options
from hasten.machine import detect_machine
from hasten.measure.accuracy import Reference, summarize
from hasten.measure.corpus import Windows, cut_windows, default_corpus
from hasten.models import Model
from hasten.types import SamplingParams

ROOT = Path(__file__).resolve().parent.parent
CONTEXT, KEEP_BYTES = 256, 1 << 30
PROMPTS = (
    "The capital of France is", "Once upon a time", "def fibonacci(n):",
    "The three laws of thermodynamics are", "To make a good cup of coffee,",
    "In 1969, astronauts", "Water boils at", "The quick brown fox", "My favourite book is",
    "SELECT name FROM users WHERE", "A list of prime numbers:", "The meaning of life",
    "import numpy as np\n", "Photosynthesis is", "She opened the door and", "The stock market",
    "How do I learn to play the guitar?", "1 + 1 = 2, 2 + 2 =", "Dear Sir or Madam,",
    "The history of Rome begins",
)  # fmt: skip
Tokens = Sequence[int]


class Ours:
    """Hasten on one artefact: as it runs by default, and in float32.

    Attributes:
        prompts: As tokens.
        texts: Greedy tokens after each prompt, as it runs by default.
        exact_texts: The same in float32.
        margins: For each of those tokens, by how many nats the likeliest token leads in float32.
    """

    def __init__(self, model: Model, options: argparse.Namespace) -> None:
        common = {"threads": options.threads, "max_context": CONTEXT, "max_sequences": 1}
        self._seed = options.seed
        self._served = Engine(model, engine_options(model, keep_weights=False, **common))
        exact = engine_options(model, weights="f32", kv="f32", keep_weights=False, **common)
        self._exact = Engine(model, exact)
        self._windows = _windows(model, options.tokens)
        size = model.config.vocab_size
        self._references = {
            name: Reference(engine, self._windows, vocab_size=size, keep_bytes=KEEP_BYTES)
            for name, engine in (("float32", self._exact), ("Hasten", self._served))
        }
        self.prompts = [model.tokenizer.encode(text) for text in PROMPTS]
        self.texts, self.exact_texts = (
            [_continue(engine, prompt, options.length) for prompt in self.prompts]
            for engine in (self._served, self._exact)
        )
        self.margins = [
            _margins(self._logits([*prompt, *text])[len(prompt) - 1 : -1])
            for prompt, text in zip(self.prompts, self.texts, strict=True)
        ]

    def close(self) -> None:
        """Ends both engines."""
        self._served.close()
        self._exact.close()

    def losses(self, scorer: PeerScorer) -> dict[str, Any]:
        """KL and agreement of float32 with Hasten, and of both with a peer."""
        pairs = {
            "float32 to Hasten": self._own_loss,
            "float32 to peer": self._references["float32"].compare(scorer),
            "Hasten to peer": self._references["Hasten"].compare(scorer),
        }
        return {name: summarize(one, seed=self._seed).as_dict() for name, one in pairs.items()}

    def parting(self, number: int, theirs: Tokens) -> dict[str, Any]:
        """How a peer's text after a prompt compares with ours.

        Returns:
            "alike", tokens that are the same from the start on; where texts part, "margin", by how
            much the likeliest token there leads the next in float32, and "apart", by how much the
            two tokens that were chosen differ, in nats.
        """
        ours = self.texts[number]
        pairs = enumerate(zip(ours, theirs, strict=True))
        place = next((i for i, (one, other) in pairs if one != other), None)
        if place is None:
            return {"alike": len(ours)}
        row = self._logits([*self.prompts[number], *ours[:place]])[-1]
        apart = abs(float(row[ours[place]]) - float(row[theirs[place]]))
        return {"alike": place, "margin": float(_margins(row[None])[0]), "apart": apart}

    @cached_property
    def _own_loss(self) -> Any:
        return self._references["float32"].compare(self._served)

    def _logits(self, tokens: Tokens) -> NDArray[np.float32]:
        return np.concatenate([part.copy() for _, part in self._exact.score(tokens)])


def _continue(engine: Engine, prompt: Tokens, length: int) -> list[int]:
    sampling = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
    return [token for output in engine.generate(prompt, sampling) for token in output.tokens]


def _windows(model: Model, tokens: int) -> Windows:
    text = default_corpus().halves()[1]
    return cut_windows(text, model.tokenizer, tokens=tokens, context=CONTEXT)


def _margins(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Nats between the two likeliest tokens of each row of logits."""
    two = np.partition(rows, -2, axis=1)[:, -2:]
    margins: NDArray[np.float32] = two[:, 1] - two[:, 0]
    return margins


def compare(case: Case, files: Files, ours: Ours, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of one case, or what the peer says against it."""
    found: dict[str, Any] = {"file": case.file}
    with ExitStack() as stack:
        try:
            path = files.export(case)
            process = PeerProcess(case.peer, find_python(case.peer, options.peer_python))
            stack.callback(process.close)
            settings = {"threads": options.threads, "context": CONTEXT + 1, "sequences": 1}
            eager = {"enforce_eager": True} if case.peer == "vllm" else {}
            found |= process.call("load", model=str(path), **settings, **eager, **case.settings)
            encoded = [process.call("encode", text=text) for text in PROMPTS]
            pairs = zip(encoded, ours.prompts, strict=True)
            found["tokenized_alike"] = sum(one == list(other) for one, other in pairs)
            found["greedy"] = _greedy(process, ours, options.length)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hasten-export-")))
            found["accuracy"] = ours.losses(PeerScorer(process, folder / "logits.npy"))
        except (HastenError, PeerError) as error:
            found["error"] = str(error)
    return found


def _greedy(process: PeerProcess, ours: Ours, length: int) -> dict[str, Any]:
    """Where the texts of all prompts part, and the margins there and everywhere."""
    texts, exact = [], 0
    for number, prompt in enumerate(ours.prompts):
        _, tokens = process.call("decode", tokens=list(prompt), count=length - 1)
        texts.append(ours.parting(number, tokens))
        exact += tokens == ours.exact_texts[number]
    alike = [one["alike"] for one in texts]
    parted = [one for one in texts if "margin" in one]
    everywhere = np.concatenate(ours.margins)
    return {
        "texts": texts,
        "same": len(texts) - len(parted),
        "same_as_float32": exact,
        "alike_median": statistics.median(alike),
        "margin_where_parted": _spread([one["margin"] for one in parted]),
        "apart_where_parted": _spread([one["apart"] for one in parted]),
        "margin_everywhere": _spread(everywhere.tolist()),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"median": statistics.median(values), "largest": max(values)}


def line(name: str, found: Mapping[str, Any]) -> str:
    """A case in a line."""
    if "error" in found:
        return f"{name}: {found['error']}"
    greedy, losses = found["greedy"], found["accuracy"]
    kl = {pair: one["kl_divergence"]["estimate"] for pair, one in losses.items()}
    parted = greedy["margin_where_parted"] or {"median": 0, "largest": 0}
    words = [
        f"{greedy['same']} of {len(PROMPTS)} texts the same",
        f"{greedy['same_as_float32']} as in float32",
        f"{greedy['alike_median']} tokens alike in the median",
        f"margin where parted {parted['median']:.3f}, at most {parted['largest']:.3f}",
        *(f"KL {pair} {one:.4f}" for pair, one in kl.items()),
    ]
    return f"{name}: {'; '.join(words)}"


def main() -> int:
    """Compares, case by case; what was found is written after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--install", action="store_true", help="make the peers' environments and end")
    add("--model", default="smollm2")
    add("--peer", action="append", choices=sorted({case.peer for case in CASES}))
    add("--only", action="append", metavar="WORD", help="cases whose name has it")
    add("--peer-python", action="append", type=Path, default=[], metavar="PYTHON")
    add("--threads", type=int, default=2)
    add("--tokens", type=int, default=1024, help="of text to compare on")
    add("--length", type=int, default=24, help="tokens after each prompt")
    add("--seed", type=int, default=0)
    add("--json", type=Path, default=ROOT / "build" / "export_peers.json", metavar="FILE")
    options = parser.parse_args()
    cases = [case for case in CASES if _wanted(case, options)]
    if options.install:
        failed = install({PEERS[case.peer][0]: case.peer for case in cases}.values())
        print("\n".join(f"{name}: {error}" for name, error in failed.items()), file=sys.stderr)
        return bool(failed)
    files = Files(options.model, ROOT / "build" / "export" / options.model.replace("/", "-"))
    document = {"machine": detect_machine().as_dict(), "cases": {}}
    if options.json.exists():
        document["cases"] = json.loads(options.json.read_text(encoding="utf-8"))["cases"]
    for artefact in dict.fromkeys(case.artefact for case in cases):
        ours = Ours(files.artefact(artefact), options)
        for case in [one for one in cases if one.artefact == artefact]:
            found = document["cases"][case.name] = compare(case, files, ours, options)
            print(line(case.name, found), file=sys.stderr, flush=True)
            options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        ours.close()
    print(json.dumps(document, indent=1))
    return 0


def _wanted(case: Case, options: argparse.Namespace) -> bool:
    words: Sequence[str] = options.only or [""]
    return (not options.peer or case.peer in options.peer) and any(
        word in case.name for word in words
    )


if __name__ == "__main__":
    sys.exit(main())
