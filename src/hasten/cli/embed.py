"""`hasten embed`: texts to vectors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click

from hasten.cli.console import print_table, progress, remark, write_json
from hasten.cli.options import EngineChoice, embedder_choice, json_option, model_argument
from hasten.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hasten.generation.embedding import Embedder
    from hasten.models.embedding_settings import Pooling

__all__ = ["command"]

SCHEMA = "hasten.embed/1"
MAX_COMPARED = 12  # texts whose similarities fit a terminal
MAX_FILE_BYTES = 1 << 30
OUTPUTS = (".npy", ".jsonl")


@dataclass(frozen=True, slots=True)
class Embedded:
    """Texts, their vectors and how long they took.

    Attributes:
        texts: As given.
        lengths: Tokens of each.
        vectors: float32 [n, dimensions].
        seconds: From text to vectors, without loading the model.
    """

    texts: Sequence[str]
    lengths: Sequence[int]
    vectors: NDArray[np.float32]
    seconds: float

    def describe(self) -> str:
        """One line of figures."""
        return (
            f"{len(self.texts)} texts, {sum(self.lengths)} tokens, {self.vectors.shape[1]} "
            f"dimensions; {len(self.texts) / self.seconds:.0f} texts/s"
        )


def _check_output(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Find out before the work that its result cannot be written."""
    if value is not None and value.suffix not in OUTPUTS:
        raise click.BadParameter(f"{str(value)!r} ends in neither {' nor '.join(OUTPUTS)}.")
    if value is not None and (value.is_dir() or not value.absolute().parent.is_dir()):
        raise click.BadParameter(f"{str(value)!r} cannot be written.")
    return value


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  hasten embed minilm 'A man is eating.' 'Someone has lunch.' 'It rains.'\n"
    "  hasten embed minilm --file texts.txt --output vectors.npy\n"
    "  cut -f 2 table.tsv | hasten embed ./model --prompt document > vectors.jsonl\n"
    "  hasten embed ./model 'Why is the sky blue?' --prompt query --dimensions 256 --json -\n\n"
    "On a terminal the similarities of the texts are shown; otherwise stdout gets JSON Lines, "
    "each with index, text, tokens and embedding."
)
@model_argument
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "--file", "file", metavar="FILE", help="Take each line of a file as a text; - is stdin."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    callback=_check_output,
    help="Write the vectors to a .npy or .jsonl file.",
)
@click.option("--prompt", metavar="NAME", help="Put the model's prompt of this name before texts.")
@click.option("--prefix", metavar="TEXT", help="Put this text before each text instead.")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "cls", "last"]),
    help="What of a text's tokens makes its vector  [default: what the model's files say]",
)
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="Scale vectors to length 1  [default: what the model's files say]",
)
@click.option(
    "--dimensions",
    type=click.IntRange(1, 2**17),
    help="Keep the first so many (of models trained for it)  [default: all]",
)
@click.option("--truncate", is_flag=True, help="Cut texts that are too long; else they are errors.")
@embedder_choice
@json_option
def command(
    model: str,
    texts: tuple[str, ...],
    file: str | None,
    output: Path | None,
    prompt: str | None,
    prefix: str | None,
    pooling: Pooling | None,
    normalize: bool | None,
    dimensions: int | None,
    truncate: bool,
    engine: EngineChoice,
    json_path: str | None,
) -> None:
    """Turn texts into vectors with MODEL, an embedding model.

    MODEL is an encoder (the BERT family) or a decoder that was trained for embeddings. Without TEXT
    and --file, each line of stdin is a text.
    """
    if prompt is not None and prefix is not None:
        raise click.UsageError("--prompt and --prefix say the same twice.")
    if texts and file is not None:
        raise click.UsageError("give either TEXT or --file.")
    found = list(texts) or _read_lines(file)
    from hasten.generation.embedding import Embedder, embedder_options
    from hasten.models import load_model

    loaded = load_model(model)
    options = embedder_options(loaded, **engine.given)
    with Embedder(
        loaded, options, pooling=pooling, normalize=normalize, dimensions=dimensions
    ) as embedder:
        before = embedder.prompt(prompt) if prefix is None else prefix
        embedded = _embed(embedder, found, before, truncate=truncate)
        document = _document(embedder, embedded) if json_path is not None else {}
    if output is not None:
        _write_output(embedded, output)
    if json_path is not None:
        write_json(document, json_path)
    if output is not None or json_path not in (None, "-"):
        remark(embedded.describe())
    elif json_path is None:
        _show(embedded)


def _read_lines(name: str | None) -> list[str]:
    """The lines of a file or of stdin, without their ends."""
    if name is None and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("there is nothing to embed", do="give TEXT or --file, or pipe lines")
    place = "stdin" if name in (None, "-") else repr(name)
    try:
        if name in (None, "-"):
            content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with Path(str(name)).open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise UsageError(f"cannot read {place}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{place} is not UTF-8 at byte {error.start}") from error
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"{place} is too large", allowed=f"up to {MAX_FILE_BYTES} bytes")
    lines = text.removesuffix("\n").split("\n")
    if lines == [""]:
        raise UsageError(f"{place} holds no text")
    return [line.removesuffix("\r") for line in lines]


def _embed(embedder: Embedder, texts: list[str], prompt: str, *, truncate: bool) -> Embedded:
    _ = embedder.model.tokenizer  # its file is read once, before the clock runs
    started = perf_counter()
    tokens = embedder.tokenize(texts, prompt=prompt, truncate=truncate)
    with progress("embed", len(texts)) as set_done:
        vectors = embedder.embed_tokens(tokens, skip=embedder.prompt_tokens(prompt), done=set_done)
    seconds = perf_counter() - started
    return Embedded(texts, [len(one) for one in tokens], vectors, seconds)


def _write_output(embedded: Embedded, path: Path) -> None:
    try:
        if path.suffix == ".npy":
            import numpy as np

            np.save(path, embedded.vectors, allow_pickle=False)
        else:
            with path.open("w", encoding="utf-8") as file:
                file.writelines(_json_lines(embedded))
    except OSError as error:
        raise UsageError(f"cannot write {str(path)!r}: {error.strerror}") from error


def _json_lines(embedded: Embedded) -> Iterable[str]:
    for index, (text, length, vector) in enumerate(
        zip(embedded.texts, embedded.lengths, embedded.vectors, strict=True)
    ):
        line = {"index": index, "text": text, "tokens": length, "embedding": _numbers(vector)}
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _numbers(vector: NDArray[np.float32]) -> list[float]:
    """The shortest decimal numbers that are these float32 values."""
    return [float(str(value)) for value in vector]


def _document(embedder: Embedder, embedded: Embedded) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "model": embedder.model.name,
        "pooling": embedder.pooling,
        "normalized": embedder.normalize,
        "dimensions": embedder.dimensions,
        "isa": embedder.isa,
        "threads": embedder.threads,
        "texts": len(embedded.texts),
        "tokens": sum(embedded.lengths),
        "seconds": embedded.seconds,
        "data": [
            {"index": index, "tokens": length, "embedding": _numbers(vector)}
            for index, (length, vector) in enumerate(
                zip(embedded.lengths, embedded.vectors, strict=True)
            )
        ],
    }


def _show(embedded: Embedded) -> None:
    """Vectors to a pipe; similarities to a terminal."""
    if not sys.stdout.isatty():
        for line in _json_lines(embedded):
            click.echo(line, nl=False)
        return
    if len(embedded.texts) > MAX_COMPARED:
        click.echo(embedded.describe())
        remark("(write them with --output vectors.npy, or to a pipe)")
        return
    similar = _similarities(embedded.vectors)
    print_table(
        ["", "tokens", *(str(index + 1) for index in range(len(similar))), ""],
        [
            [str(index + 1), str(length), *(f"{value:.3f}" for value in row), _short(text)]
            for index, (text, length, row) in enumerate(
                zip(embedded.texts, embedded.lengths, similar, strict=True)
            )
        ],
        title="Cosine similarity",
    )
    click.echo(embedded.describe())


def _similarities(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    import numpy as np

    wide = vectors.astype(np.float64)
    lengths = np.sqrt(np.square(wide).sum(axis=1))
    products: NDArray[np.float64] = wide @ wide.T
    return products / np.maximum(np.outer(lengths, lengths), 1e-30)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 40 else line[:37] + "..."
