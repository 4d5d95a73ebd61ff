"""Names of models, as clients write them.

``name``, ``org/name`` and either with ``:tag``. The tag "latest" is what a name without one means,
and a Hub's host before the name says where the model comes from but is no part of it. Nothing else
can be written, so no name is ever a path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from hasten.errors import UsageError

__all__ = ["ModelName"]

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,95}"
_NAME = re.compile(rf"(?:(?P<org>{_PART})/)?(?P<base>{_PART})(?::(?P<tag>{_PART}))?", re.ASCII)
_HOSTS = ("hf.co/", "huggingface.co/")
_LATEST = "latest"
_ALLOWED = (
    "name or org/name, perhaps with :tag, each part of letters, digits, '-', '_' and single '.', "
    "up to 96 characters"
)


@dataclass(frozen=True, slots=True)
class ModelName:
    """A name taken apart.

    Attributes:
        org: Who publishes it on a Hub; None for names of this server's own.
        base: The name proper.
        tag: Which of its variants; None for "latest".
    """

    org: str | None
    base: str
    tag: str | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a name.

        Raises:
            UsageError: It is no name.
        """
        host = next((host for host in _HOSTS if text.startswith(host)), "")
        match = _NAME.fullmatch(text, len(host))
        if match is None or (host and match["org"] is None):
            shown = text if len(text) <= 100 else text[:100] + "…"
            raise UsageError(f"{shown!r} is no name of a model", allowed=_ALLOWED)
        tag = match["tag"]
        return cls(match["org"], match["base"], None if tag == _LATEST else tag)

    @property
    def repository(self) -> str | None:
        """The repository on a Hub that it names, without the tag; None if it names none."""
        return None if self.org is None else f"{self.org}/{self.base}"

    def __str__(self) -> str:
        """The one spelling under which a model is known."""
        name = self.base if self.org is None else f"{self.org}/{self.base}"
        return name if self.tag is None else f"{name}:{self.tag}"
