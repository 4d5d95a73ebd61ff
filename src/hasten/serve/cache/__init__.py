"""Answers that were given before, and those that are being computed for somebody else."""

from hasten.serve.cache.answers import AnswerCache, CacheStatistics

__all__ = ["AnswerCache", "CacheStatistics"]
