"""Distillation: a student learns to answer as its teacher."""
