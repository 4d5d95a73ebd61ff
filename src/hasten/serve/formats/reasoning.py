"""How models mark what they think before they answer."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GRANITE_THOUGHTS", "MISTRAL_THOUGHTS", "TAGGED_THOUGHTS", "Thoughts"]


@dataclass(frozen=True)
class Thoughts:
    """Marks of reasoning.

    Attributes:
        opens: One of these begins it.
        closes: One of these ends it.
        answer: What may stand around the answer then; two texts, or none.
        usual: Models reason unless they are told not to.
    """

    opens: tuple[str, ...]
    closes: tuple[str, ...]
    answer: tuple[str, str] | None = None
    usual: bool = True

    @property
    def special(self) -> tuple[str, ...]:
        """Marks that may be special tokens."""
        return (*self.opens, *self.closes)

    def opened(self, prompt: str) -> bool:
        """Whether a prompt ends inside reasoning that it begins itself."""
        return prompt.rstrip().endswith(self.opens)

    def left_open(self, text: str) -> bool:
        """Whether a text of the model's own ends inside reasoning."""
        begin = max(map(text.rfind, self.opens))
        return begin >= 0 and begin > max(map(text.rfind, self.closes))


TAGGED_THOUGHTS = Thoughts(("<think>",), ("</think>",), ("<response>", "</response>"))
MISTRAL_THOUGHTS = Thoughts(("[THINK]",), ("[/THINK]",))
GRANITE_THOUGHTS = Thoughts(
    ("Here is my thought process:", "Here's my thought process:"),
    ("Here is my response:", "Here's my response:"),
    usual=False,
)
