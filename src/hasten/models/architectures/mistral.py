"""Mistral: Llama's blocks with attention over a sliding window (Jiang et al. 2023)."""

from __future__ import annotations

from hasten.models.architectures.llama import build

__all__ = ["build"]
