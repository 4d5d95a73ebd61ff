"""A model as found in files: configuration, weights, and how its text is read and written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.models import architectures
from hasten.models.config import ModelConfig
from hasten.models.embedding_settings import EmbeddingSettings
from hasten.models.inventory import check_inventory
from hasten.models.weights import StoredTensor

if TYPE_CHECKING:
    from hasten.models.chat import ChatTemplate
    from hasten.models.tokenizer import Tokenizer

__all__ = ["Model", "TextParts"]

_HASH_BYTES = 1 << 22


@dataclass(frozen=True)
class TextParts:
    """How to make the parts of a model that deal in text; called when first needed.

    Attributes:
        tokenizer: Raises a `HastenError` if the files hold none.
        chat_template: Gives None if the files hold none.
        save: Writes the files that all can be made from again into a directory.
        embedding: How hidden states become embeddings; the defaults if the files do not say.
    """

    tokenizer: Callable[[], Tokenizer]
    chat_template: Callable[[], ChatTemplate | None]
    save: Callable[[Path], None]
    embedding: Callable[[], EmbeddingSettings] = EmbeddingSettings


@dataclass
class Model:
    """One model; `hasten.models.load_model` makes it.

    Attributes:
        name: Short name for reports.
        path: The file or directory that it was read from.
        config: Its architecture.
        weights: Every tensor that the architecture needs, by Hugging Face name; their shapes are
            checked when the model is made (ModelFileError).
        files: The files that make it up, for `digest`.
        text: Makes tokenizer and chat template.
        recipe: Content of ``recipe.json`` if it is an artefact, else None.
    """

    name: str
    path: Path
    config: ModelConfig
    weights: Mapping[str, StoredTensor] = field(repr=False)
    files: Sequence[Path] = field(repr=False)
    text: TextParts = field(repr=False)
    recipe: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.weights = check_inventory(
            self.config, architectures.arrange(self.config, self.weights)
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; raises a `HastenError` if the files hold none."""
        return self.text.tokenizer()

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The chat template, or None if the files hold none."""
        return self.text.chat_template()

    @cached_property
    def embedding(self) -> EmbeddingSettings:
        """How the files say that hidden states become embeddings."""
        return self.text.embedding()

    def derive(
        self, weights: Mapping[str, StoredTensor], config: ModelConfig | None = None
    ) -> Model:
        """A model in memory with other weights, and perhaps another shape, of the same text parts.

        It has no files, so nothing that is kept by file (packed weights) is taken for its own.

        Args:
            weights: Every tensor that the configuration implies.
            config: Of the new model; None keeps this one's.

        Raises:
            ModelFileError: A tensor is missing, superfluous or of another shape.
        """
        return Model(self.name, self.path, config or self.config, weights, (), self.text)

    def digest(self) -> str:
        """SHA-256, in hexadecimal, over names and content of the model's files."""
        total = hashlib.sha256()
        for path in sorted(self.files, key=lambda file: file.name):
            one = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(_HASH_BYTES):
                    one.update(chunk)
            total.update(f"{path.name}\0{one.hexdigest()}\n".encode())
        return total.hexdigest()
