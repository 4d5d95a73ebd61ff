"""Old claims held anew: steps of an artefact that say they change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hasten.machine import memory_limit
from hasten.measure.statistics import Interval
from hasten.models import Model
from hasten.optimize.candidates import Candidate
from hasten.optimize.claims import Claim
from hasten.optimize.laboratory import EngineLaboratory, Material
from hasten.optimize.replay import recipe_passes, remaking
from hasten.optimize.stages import Progress

__all__ = ["ClaimCheck", "check_claim", "claim_of"]


@dataclass(frozen=True, slots=True)
class ClaimCheck:
    """Steps that say they change nothing: what the recipe says of them, and what they do now.

    Attributes:
        was: As `Claim.as_dict` of then.
        now: Measured again.
    """

    was: Mapping[str, Any]
    now: Claim

    @property
    def verdict(self) -> Literal["kept", "worse"]:
        """Whether they keep to it now."""
        return "kept" if self.now.why_refused is None else "worse"

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"was": dict(self.was), "is": self.now.as_dict(), "verdict": self.verdict}

    def row(self) -> list[str]:
        """As in `Verification.rows`: KL beside the same candidate without the steps."""
        was = Interval(**self.was["excess"]["kl_divergence"])
        figures = [
            f"{one.estimate:+.1e} [{one.low:+.1e}, {one.high:+.1e}]"
            for one in (was, self.now.excess.kl)
        ]
        return [f"KL that {' + '.join(self.now.steps)} adds", *figures, self.verdict]


def claim_of(recipe: Mapping[str, Any], remarks: list[str]) -> Mapping[str, Any] | None:
    """What was measured of such steps of the candidate that was chosen.

    Returns:
        None if it had none, or if a model would have to learn again for it, which a remark says.
    """
    chosen = [one for one in recipe["candidates"] if one["label"] == recipe["chosen"]]
    claim: Mapping[str, Any] | None = chosen[0].get("claim") if chosen else None
    slow = [step.label for step in recipe_passes(recipe)[0] if "training" in step.needs]
    if claim is None or not slow:
        return claim
    remarks.append(
        f"that {' + '.join(claim['steps'])} changes nothing was not measured again:"
        f" {', '.join(slow)} would have to learn again"
    )
    return None


def check_claim(
    was: Mapping[str, Any],
    recipe: Mapping[str, Any],
    original: Model,
    served: Candidate,
    material: Material,
    progress: Progress,
    text: Path | None = None,
) -> ClaimCheck:
    """Makes the models before and after such steps again and holds the steps to their claim.

    Args:
        was: As `claim_of` gives it.
        recipe: Of the artefact.
        original: What it was made of.
        served: How the artefact runs.
        material: The evaluation text, as then.
        progress: Told what a pass does, and the share of it that is done.
        text: The file that the recipe's texts were cut from, unless it was the default text.

    Raises:
        HastenError: A model cannot be made or run here.
    """
    steps, rounding = recipe_passes(recipe)
    candidate = replace(served, steps=tuple(steps), **(rounding or {}))
    with (
        remaking(recipe, original, progress, text) as variants,
        EngineLaboratory(
            variants.model,
            context=material.evaluation.context,
            material=material,
            threads=served.threads,
            memory_limit=memory_limit(),
            seed=recipe.get("seed", 0),
        ) as laboratory,
    ):
        return ClaimCheck(was, laboratory.hold(candidate, 0.95))
