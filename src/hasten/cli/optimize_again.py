"""`hasten optimize --replay` and `--verify`: an artefact made again, its claims measured again."""

from __future__ import annotations

from pathlib import Path

import click

from hasten.cli.console import print_table, remark, write_json
from hasten.cli.search_progress import search_progress

__all__ = ["replay_artefact", "verify_artefact"]

_WEIGHTS = {
    "same": "the weights are those of the recipe, bit for bit",
    "different": "the weights are not those of the recipe: their SHA-256 is another",
    "unknown": "the recipe has no digest of these weights, so that they may be others",
}


def replay_artefact(
    recipe_path: Path, candidate: int | None, output: Path, source: str | None, text: Path | None
) -> None:
    """Makes the artefact of a recipe; exits with 1 where its weights are not those of then.

    Args:
        recipe_path: recipe.json, or a directory with it.
        candidate: Place of the candidate; None for the one that was chosen.
        output: Directory of the artefact.
        source: Where the source is now, if elsewhere than the recipe says.
        text: The file that the recipe's texts were cut from, unless it was the default text.
    """
    from hasten.optimize.publish import check_destination
    from hasten.optimize.replay import read_recipe, replay, with_candidate

    check_destination(output)
    recipe = read_recipe(recipe_path)
    if candidate is not None:
        recipe = with_candidate(recipe, candidate)
    with search_progress() as tell:
        weights = replay(recipe, output, progress=tell, source=source, text=text)
    remark(f"{output}: {recipe['chosen']}")
    if candidate is None:
        remark(_WEIGHTS[weights])
    if weights == "different":
        click.get_current_context().exit(1)


def verify_artefact(
    directory: Path, source: str | None, text: Path | None, json_path: str | None
) -> None:
    """Shows what a recipe claims beside what is measured now; exits with 1 where it does not hold.

    Args:
        directory: The artefact.
        source: Where the model that it was made of is now, if elsewhere than the recipe says.
        text: The file that the recipe's texts were cut from, unless it was the default text.
        json_path: Where to write the figures, "-" for stdout instead of the table.
    """
    from hasten.optimize.verify import verify

    with search_progress() as tell:
        found = verify(str(directory), progress=tell, source=source, text=text)
    if json_path is not None:
        write_json(found.as_dict(), json_path)
    if json_path != "-":
        print_table(["figure", "was", "is", "of now"], found.rows())
        click.echo(_WEIGHTS[found.weights])
        for line in found.remarks:
            click.echo(f"note: {line}")
        if found.refused is not None:
            click.echo(f"outside the budget now: {found.refused}")
        click.secho("holds" if found.holds else "does not hold", bold=True)
    if not found.holds:
        click.get_current_context().exit(1)
