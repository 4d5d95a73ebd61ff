"""Traffic kept as a workload: when requests came, how long they were, and what they had in common.

A line for each generation that has ended, as `hasten bench --prompt-file` reads it: `{"tokens",
"max_tokens", "at"}`, with the seconds from the beginning of the recording to the request. Texts are
replaced unless the operator asks for them: nobody should have to choose between a benchmark that is
like the traffic and the privacy of those who made it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UsageError
from hasten.models.tokenizer import Tokenizer

__all__ = ["Disguise", "Recorder"]

_LOG = logging.getLogger(__name__)

BLOCK = 16
"""Tokens that are replaced together: prompts that begin alike still do, as far as whole blocks of
these go, which is what a prefix cache can use."""


class Disguise:
    """Replaces tokens by others that tell nothing of them but where prompts are alike.

    A block becomes what a keyed hash of it and of all before it says. The key is forgotten with the
    process, so that texts cannot be guessed and compared.

    Args:
        ordinary: Ids that may take the place of others, uint32 [n].
        key: Of the hash; None draws one.
    """

    def __init__(self, ordinary: NDArray[np.uint32], key: bytes | None = None) -> None:
        self._ordinary = ordinary
        self._key = key or secrets.token_bytes(32)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Disguise:
        """One whose tokens are text."""
        special = np.fromiter(tokenizer.special_ids, np.int64)
        ids = np.arange(tokenizer.vocab_size)
        return cls(np.setdiff1d(ids, special).astype(np.uint32))

    def __call__(self, tokens: Sequence[int]) -> list[int]:
        """As many tokens as were given."""
        ids = np.array(tokens, dtype="<u4")
        chain, words = b"", bytearray()
        for start in range(0, len(ids), BLOCK):
            block = ids[start : start + BLOCK].tobytes()
            chain = hashlib.blake2b(chain + block, key=self._key).digest()
            words += chain
        chosen = np.frombuffer(bytes(words), dtype="<u4")[: len(ids)] % len(self._ordinary)
        return [int(one) for one in self._ordinary[chosen]]


class Recorder:
    """Appends requests to a file; a disk that is full ends the recording, never a request.

    Args:
        path: Of the file; it must not exist yet, for times begin anew with each recording.
        content: Keep the tokens of prompts as they are.

    Raises:
        UsageError: The file exists, or cannot be made.
    """

    def __init__(self, path: Path, *, content: bool) -> None:
        self._path = path
        self._content = content
        self._began = time.monotonic()
        self._disguises: dict[str, Disguise] = {}
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise UsageError(
                f"{path} exists", do="name a new file to record to, or move this one away"
            ) from error
        except OSError as error:
            raise UsageError(f"cannot record to {path}: {error.strerror}") from error
        # By lines: what was recorded is there whatever becomes of the process.
        self._file: TextIO | None = os.fdopen(descriptor, "w", buffering=1, encoding="ascii")

    def add(
        self,
        model: str,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        output_tokens: int,
        received: float,
    ) -> None:
        """Notes a request that has ended.

        Args:
            model: Name of the model; each has a disguise of its own.
            tokenizer: Its tokenizer.
            prompt: Token ids.
            output_tokens: Tokens of the answer; requests without any are not recorded.
            received: When the request came, in seconds of `time.monotonic`.
        """
        if self._file is None or output_tokens == 0:
            return
        if self._content:
            tokens = list(prompt)
        else:
            if model not in self._disguises:
                self._disguises[model] = Disguise.of(tokenizer)
            tokens = self._disguises[model](prompt)
        at = max(0.0, round(received - self._began, 6))
        line = json.dumps({"tokens": tokens, "max_tokens": output_tokens, "at": at})
        try:
            self._file.write(line + "\n")
        except OSError as error:
            _LOG.warning("recording ended: cannot write to %s: %s", self._path, error.strerror)
            self.close()

    def close(self) -> None:
        """Ends the recording."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError as error:
                _LOG.warning("the end of %s is lost: %s", self._path, error.strerror)
