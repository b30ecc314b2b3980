"""The depths of a frontier, each as a recipe of its own, and a recipe with the layers that prices choose."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inheritune.errors import PlanError, RecipeError
from inheritune.recipes.schema import METHODS, Recipe, RecommendedLayers
from inheritune.records.base import read_record
from inheritune.records.prices import PricesRecord
from inheritune.spectra.advice import depth_of_budget, recommend_by_price
from inheritune.spectra.folder import PRICES

SHARES = ("90%", "80%", "70%", "60%", "50%")
"""Of the reference's layers, where a recipe names no depths."""


def with_layers(recipe: Recipe, prices: PricesRecord, depth: int) -> Recipe:
    """Return a recipe that keeps the cheapest `depth` layers.

    Raises:
        PlanError: the prices do not lead to so few.
    """
    layers = RecommendedLayers(**recommend_by_price(prices, depth).as_json())
    return recipe.model_copy(update={"layers": layers, "keep": None, "drop": None})


def recipes_by_depth(recipe: Recipe, depth: int, prices: PricesRecord | None = None) -> list[Recipe]:
    """Return a recipe for each depth of a frontier, the deepest first; the recipe itself where it has none.

    Each is one cut, trained without growth, so that all depths get as many tokens. Without `prices` each has a budget.

    Args:
        recipe: the recipe.
        depth: number of layers of the reference.
        prices: what its layers cost.

    Raises:
        PlanError: a depth is out of range or there twice, or the prices do not lead to it.
        RecipeError: the recipe has no reference, a method without layers, or says the depth in another way too.
    """
    if recipe.frontier is None:
        return [recipe]
    takes = METHODS[recipe.method].takes
    if "layers" not in takes:
        takers = " or ".join(name for name, other in METHODS.items() if "layers" in other.takes)
        raise RecipeError(f"method {recipe.method} takes no layers, so it has no frontier: expected method {takers}")
    if recipe.reference is None:
        raise RecipeError("a frontier compares with a reference and the recipe has none: set reference")
    for budget in ("keep", "drop"):
        if (value := getattr(recipe, budget)) is not None:
            raise RecipeError(f"{budget} {value} and frontier are both given: expected frontier.depths alone")
    made: list[Recipe] = []
    for count in _depths(recipe.frontier.depths, depth):
        name = f"{recipe.name}-{count}"
        update: dict[str, Any] = {"name": name, "frontier": None, "keep": str(count), "layers": None}
        if "growth" in takes:
            update["growth"] = recipe.growth.model_copy(update={"max_rounds": 1})
        if recipe.analysis is not None and made:  # the reference is analysed once
            of = tuple(role for role in recipe.analysis.of if role != "reference")
            update["analysis"] = recipe.analysis.model_copy(update={"of": of})
        each = recipe.model_copy(update=update)
        made.append(each if prices is None else with_layers(each, prices, count))
    return made


def _depths(named: Sequence[str] | None, depth: int) -> list[int]:
    """Return the different depths, the deepest first; where none are named, some below the reference's."""
    if depth < 2:
        raise PlanError("the reference has one layer: a frontier needs at least 2")
    if named is None:
        return sorted({depth_of_budget(share, None, depth) or 1 for share in SHARES} - {depth}, reverse=True)
    held: dict[int, str] = {}
    expected = f"expected 1 to {depth - 1}, or a share such as 80%"
    for said in named:
        which = f"frontier.depths: {said} of {depth} layers"
        try:
            count = depth_of_budget(said, None, depth) or 0
        except PlanError as error:
            raise PlanError(f"{which}: {expected}") from error
        if count == depth:
            raise PlanError(f"{which} leaves all of them: {expected}")
        if count in held:
            raise PlanError(f"frontier.depths: {held[count]} and {said} are both {count} layers: expected each once")
        held[count] = said
    return sorted(held, reverse=True)


def given_prices(recipe: Recipe, folder: Path | None = None) -> PricesRecord | None:
    """Return the prices of the analysis that the layers of a frontier name, as `folder` keeps them; None without one.

    Raises:
        RecipeError: the layers are something else.
        OutputError: the prices cannot be read.
    """
    layers = recipe.layers
    if recipe.frontier is None or layers is None:
        return None
    if not (isinstance(layers, RecommendedLayers) and layers.measured and layers.analysis):
        said = (layers.analysis or "a recommendation") if isinstance(layers, RecommendedLayers) else layers
        raise RecipeError(
            f"layers {said!r} and frontier are both given: expected frontier.depths alone, or for layers an analysis "
            "with prices (analyze --ablate)"
        )
    places = [place / PRICES for place in (folder, Path(layers.analysis).expanduser()) if place is not None]
    return read_record(next((path for path in places if path.is_file()), places[-1]), PricesRecord)
