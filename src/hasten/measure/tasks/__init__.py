"""Accuracy by labelled items: what was asked, what is right, and what a model answers."""
