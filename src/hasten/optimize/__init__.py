"""Faster within an accuracy budget: candidates, the gate, the search, the artefact's recipe."""

from hasten.optimize.gate import Budget
from hasten.optimize.pipeline import (
    optimize,
    prepare_material,
    prepare_plan,
    prepare_tasks,
)

__all__ = ["Budget", "optimize", "prepare_material", "prepare_plan", "prepare_tasks"]
