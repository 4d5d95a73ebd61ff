"""Texts to vectors: encoders, and decoders whose hidden states serve as embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hasten.errors import CapacityError, UsageError
from hasten.generation.executor import OverExecutor, make_executor
from hasten.generation.kvcache import DEFAULT_CONTEXT, blocks_for
from hasten.generation.options import check_options, engine_options
from hasten.models.embedding_settings import Pooling
from hasten.models.model import Model
from hasten.types import Batch, EngineOptions

__all__ = ["Embedder", "Tokens", "embedder_options"]

Tokens = NDArray[np.int32]


def embedder_options(model: Model, **given: object) -> EngineOptions:
    """Options for a model as `engine_options` makes them, with a cache that loses nothing.

    An encoder's keys and values live only as long as a layer runs, so rounding them saves no
    memory worth it.

    Args:
        model: What will run.
        given: Fields of `EngineOptions`; None counts as not given.
    """
    if model.config.encoder is not None and given.get("kv") is None:
        given = {**given, "kv": "f32"}
    return engine_options(model, **given)


class Embedder(OverExecutor):
    """Turns texts into vectors.

    The same text gives the same bits, whatever else is embedded with it.

    Args:
        model: An encoder, or a decoder, whose output projection is left out.
        options: How to run it; None takes `embedder_options`. `chunk` is the most tokens of one
            call of the executor, raised to the longest text for encoders, which take it whole.
        pooling: "mean" over the tokens, the first token's state ("cls") or the "last" one's; None
            takes what the files say, or the mean for encoders and the last token for decoders.
        normalize: Scale to Euclidean length 1; None takes what the files say.
        dimensions: Keep the first so many and scale again (Matryoshka embeddings, Kusupati et al.
            2022); None keeps all.

    Attributes:
        max_tokens: Longest text: `EngineOptions.max_context`, else what the files say.
        pooling: As chosen.
        normalize: As chosen.
        dimensions: Of each vector.

    Raises:
        UsageError: An option that does not fit the model or the machine.
        UnsupportedModelError: The files name a pooling that Hasten does not run.
        CapacityError: Weights and buffers would not fit into memory.
    """

    def __init__(
        self,
        model: Model,
        options: EngineOptions | None = None,
        *,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> None:
        config = model.config
        self.model = model
        self.settings = settings = model.embedding
        self.whole = config.encoder is not None
        default: Pooling = "mean" if self.whole else "last"
        self.pooling: Pooling = pooling or settings.pooling or default
        self.normalize = settings.normalize if normalize is None else normalize
        self.dimensions = config.hidden_size
        self.dimensions = self.check_dimensions(dimensions)
        options = embedder_options(model) if options is None else options
        self.max_tokens = self._choose_limit(options.max_context)
        if self.whole and options.chunk < self.max_tokens:
            options = replace(options, chunk=self.max_tokens)
        check_options(options)
        self.options = options
        # Texts of a few tokens fill a call before they fill their blocks.
        self._blocks = max(blocks_for(self.max_tokens), options.chunk // 8)
        if config.output == "logits":
            model = replace(model, config=replace(config, output="hidden"))
        self._executor = make_executor(model, options, self._blocks, self.max_tokens)

    def prompt(self, name: str | None) -> str:
        """The text that the model's files want before a text.

        Args:
            name: What kind of text it is ("query", "document"); None for the default prompt.

        Raises:
            UsageError: The files have no prompt of that name.
        """
        prompts = self.settings.prompts
        name = self.settings.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in prompts:
            raise UsageError(
                f"{self.model.name} has no prompt {name!r}",
                allowed=", ".join(prompts) or "none; the files hold no prompts",
            )
        return prompts[name]

    def tokenize(
        self, texts: Sequence[str], *, prompt: str = "", truncate: bool = False
    ) -> list[Tokens]:
        """The tokens of texts, with those that the model expects around them.

        The text of a special token counts as ordinary text.

        Args:
            texts: Any texts.
            prompt: Put before each.
            truncate: Leave out what is too long at the end of a text, before the closing tokens.

        Returns:
            int32 [n] for each text.

        Raises:
            CapacityError: A text is too long, and `truncate` is not set.
            UsageError: The model has no tokenizer.
        """
        if not texts:
            return []
        tokenizer = self.model.tokenizer
        room = self.max_tokens - len(tokenizer.suffix)
        found = []
        for number, text in enumerate(texts):
            whole = self._within_reach(number, prompt + text, truncate=truncate)
            ids = tokenizer.encode(whole, parse_special=False)
            if len(ids) > self.max_tokens:
                if not truncate:
                    raise self._too_long(number, f"{len(ids)} tokens", self.max_tokens)
                ids = [*ids[:room], *tokenizer.suffix]
            found.append(np.asarray(ids, np.int32))
        return found

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        truncate: bool = False,
        done: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """The vectors of texts, in their order.

        Args:
            texts: Any texts.
            prompt: Put before each; None for the default prompt of the model's files.
            truncate: Cut texts that are too long, rather than refuse them.
            done: Called with the number of texts that are ready.

        Returns:
            float32 [n, dimensions].

        Raises:
            CapacityError: A text is too long, and `truncate` is not set.
            UsageError: A text without tokens, or a model without a tokenizer.
        """
        prompt = self.prompt(None) if prompt is None else prompt
        tokens = self.tokenize(texts, prompt=prompt, truncate=truncate)
        return self.embed_tokens(tokens, skip=self.prompt_tokens(prompt), done=done)

    def embed_tokens(
        self,
        texts: Sequence[Sequence[int] | Tokens],
        *,
        skip: int = 0,
        dimensions: int | None = None,
        done: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """The vectors of texts that are tokens already, with those around them.

        Args:
            texts: Token ids of each text.
            skip: Leave so many tokens at the beginning of each out of the mean.
            dimensions: Keep the first so many; None keeps those of the embedder.
            done: Called with the number of texts that are ready.

        Returns:
            float32 [n, dimensions].

        Raises:
            CapacityError: A text is too long.
            UsageError: A text without tokens, a token that the model does not have, or more
                dimensions than the embedder's.
        """
        kept = self.check_dimensions(dimensions)
        tokens = self.check_tokens(texts)
        result = np.empty((len(tokens), kept), np.float32)
        ready = 0
        for group in self._groups(tokens):
            for index, vector in self._run(group, tokens, skip, kept):
                result[index] = vector
            ready += len(group)
            if done is not None:
                done(ready)
        return result

    def prompt_tokens(self, prompt: str) -> int:
        """Tokens at the beginning of a text with this prompt that the mean leaves out.

        None unless the model's files say so.
        """
        if self.settings.pool_prompt or not prompt:
            return 0
        tokenizer = self.model.tokenizer
        return len(tokenizer.encode(prompt, parse_special=False)) - len(tokenizer.suffix)

    def check_dimensions(self, wanted: int | None) -> int:
        """How many dimensions to keep; None keeps those of the embedder.

        Raises:
            UsageError: It has not so many.
        """
        if wanted is None:
            return self.dimensions
        if not 1 <= wanted <= self.dimensions:
            raise UsageError(f"dimensions is {wanted}", allowed=f"1 to {self.dimensions}")
        return wanted

    def check_tokens(self, texts: Sequence[Sequence[int] | Tokens]) -> list[Tokens]:
        """Texts that are tokens already, as `embed_tokens` takes them.

        Raises:
            CapacityError: A text is too long.
            UsageError: A text without tokens, or a token that the model does not have.
        """
        vocabulary = self.model.config.vocab_size
        checked = []
        for number, ids in enumerate(texts):
            tokens = np.asarray(ids)
            if tokens.ndim != 1 or len(tokens) == 0:
                raise UsageError(f"text {number + 1} has no tokens", allowed="at least one token")
            if len(tokens) > self.max_tokens:
                raise self._too_long(number, f"{len(tokens)} tokens", self.max_tokens)
            if tokens.min() < 0 or tokens.max() >= vocabulary:
                raise UsageError(
                    f"text {number + 1} holds a token that is not in the vocabulary",
                    allowed=f"0 to {vocabulary - 1}",
                )
            checked.append(tokens.astype(np.int32, copy=False))
        return checked

    def _choose_limit(self, wanted: int | None) -> int:
        longest = self.model.config.max_position
        if wanted is None:
            return min(longest, self.settings.max_tokens or longest, DEFAULT_CONTEXT)
        if not 1 <= wanted <= longest:
            raise UsageError(
                f"max_context is {wanted}",
                allowed=f"1 to {longest}, the longest sequence that the model was made for",
            )
        return wanted

    def _within_reach(self, number: int, text: str, *, truncate: bool) -> str:
        """A text as it is tokenised, which takes hundreds of bytes a character.

        So what no tokens that fit could spell is cut, or refused, before that.
        """
        most = self.max_tokens
        if len(text) > most:
            most *= self.model.tokenizer.longest_token
        if len(text) > most and not truncate:
            raise self._too_long(number, f"{len(text)} characters", most)
        text = text[:most]
        return text.lower() if self.settings.lowercase else text

    def _too_long(self, number: int, found: str, most: int) -> CapacityError:
        return CapacityError(
            f"text {number + 1} has {found}",
            allowed=f"up to {most} (the model has {self.model.config.max_position} positions)",
            do="split it, raise max_context where the model allows it, or cut it with truncate",
        )

    def _groups(self, texts: list[Tokens]) -> Iterator[list[int]]:
        """Indices of texts that run together, the longest first.

        A group fits into one call, or is one text that takes several.
        """
        group: list[int] = []
        tokens = blocks = 0
        for index in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
            length = len(texts[index])
            tokens, blocks = tokens + length, blocks + blocks_for(length)
            if group and (tokens > self.options.chunk or blocks > self._blocks):
                yield group
                group, tokens, blocks = [], length, blocks_for(length)
            group.append(index)
        if group:
            yield group

    def _run(
        self, group: list[int], texts: list[Tokens], skip: int, dimensions: int
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Index and vector of each text of a group."""
        lengths = [len(texts[index]) for index in group]
        hidden = self._hidden([texts[index] for index in group])
        if self.pooling != "mean":
            for index, row in zip(group, hidden[-len(group) :], strict=True):
                yield index, self._finish(row.astype(np.float64), dimensions)
            return
        first = 0
        for index, length in zip(group, lengths, strict=True):
            # Texts that are no longer than the prompt keep their last token.
            rows = hidden[first + min(skip, length - 1) : first + length].astype(np.float64)
            yield index, self._finish(np.add.reduce(rows) / len(rows), dimensions)
            first += length

    def _hidden(self, texts: list[Tokens]) -> NDArray[np.float32]:
        """The hidden states that pooling needs: of every token, or one of each text."""
        tokens = np.concatenate(texts)
        lengths = np.array([len(text) for text in texts])
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        positions = np.arange(len(tokens), dtype=np.int32) - np.repeat(starts[:-1], lengths)
        tables = np.full((len(texts), blocks_for(int(lengths.max()))), -1, np.int32)
        used = 0
        for table, length in zip(tables, lengths, strict=True):
            count = blocks_for(int(length))
            table[:count] = np.arange(used, used + count)
            used += count
        if self.pooling == "mean":
            wanted = np.arange(len(tokens), dtype=np.int32)
        else:
            wanted = starts[:-1] if self.pooling == "cls" else starts[1:] - 1
        results = []
        for begin in range(0, len(tokens), self.options.chunk):
            part = slice(begin, min(begin + self.options.chunk, len(tokens)))
            batch = Batch(
                tokens[part],
                positions[part],
                np.minimum(starts, part.stop - begin),  # only one text alone takes several calls
                tables,
                wanted[(begin <= wanted) & (wanted < part.stop)] - np.int32(begin),
            )
            results.append(self._executor.run(batch))
        return results[0] if len(results) == 1 else np.concatenate(results)

    def _finish(self, vector: NDArray[np.float64], dimensions: int) -> NDArray[np.float32]:
        kept = vector[:dimensions]
        if self.normalize:
            # A vector of zeros has no direction and stays.
            kept = kept / max(float(np.sqrt(np.add.reduce(kept * kept))), 1e-12)
        return kept.astype(np.float32)
