"""DistilBERT: BERT's blocks, half as many, without token types (Sanh et al. 2019)."""

from __future__ import annotations

from hasten.models.architectures.bert import build

__all__ = ["build"]
