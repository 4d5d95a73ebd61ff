"""The optional extra `torch`: whether it is there."""

from __future__ import annotations

import importlib.util

from hasten.errors import MissingDependencyError

__all__ = ["require_torch"]


def require_torch(purpose: str) -> None:
    """Says how to install torch where it is missing; imports nothing.

    Args:
        purpose: What needs it, as the beginning of a sentence.

    Raises:
        MissingDependencyError: It is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError(
            f"{purpose} needs the package torch",
            do="pip install 'hasten[torch]' (for a processor alone, smaller: pip install torch"
            " --index-url https://download.pytorch.org/whl/cpu)",
        )
