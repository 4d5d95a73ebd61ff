"""Rounding weights to integers with the least loss: scales, feedback, folding."""
