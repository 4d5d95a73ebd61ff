"""Serving: the protocols that clients speak, over engines in processes of their own."""

__all__: list[str] = []
