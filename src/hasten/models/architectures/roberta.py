"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT's blocks with another vocabulary (Liu et al. 2019)."""

from __future__ import annotations

from hasten.models.architectures.bert import build

__all__ = ["build"]
