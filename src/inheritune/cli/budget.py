"""`--keep` and `--drop`: how many layers stay, and which, by what was or is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from inheritune.errors import PlanError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from inheritune.records.analysis import Recommendation


@dataclass(frozen=True)
class Budget:
    """The options of a budget, as a command takes them."""

    keep: str | None
    drop: int | None
    analysis: Path | None
    data: str | None
    separator: str
    field: str
    revision: str | None

    def choose(
        self, model: str, config: PretrainedConfig, layers: str | None, arrange: str, grow_from: str | None
    ) -> Recommendation | str | None:
        """Return the layers that stay, and print the recommendation; a count where another option says which.

        Without a budget they are those that `--layers` says.

        Raises:
            InherituneError: the options contradict each other, the budget is out of range, or nothing can be measured.
        """
        from inheritune.spectra.advice import depth_of_budget, recommend
        from inheritune.surgery.config.target import depth_of

        sources = [name for name, value in (("--analysis", self.analysis), ("--data", self.data)) if value is not None]
        if self.keep is None and self.drop is None:
            if sources:
                raise PlanError(f"{sources[0]} says which layers stay, not how many: pass --keep or --drop too")
            return layers
        option = "--keep" if self.keep is not None else "--drop"
        for name, value in (("--layers", layers), ("--grow-from", grow_from)):
            if value is not None:
                raise PlanError(f"{option} and {name} are both given: expected one of them")
        count = depth_of_budget(self.keep, self.drop, depth_of(config))
        if len(sources) > 1 or (sources and arrange != "first"):
            raise PlanError(f"{sources[0]} and {[*sources, '--arrange'][1]} both say which layers stay: expected one")
        if self.data and self.revision is not None:
            raise PlanError(f"--data measures {model} as it is now, not --revision {self.revision}: pass --analysis")
        if not sources:
            if arrange == "first":
                typer.echo(
                    f"note: the first {count} layers are the paper's rule of thumb, unmeasured: pass --data TEXT, or "
                    "--analysis of analyze --ablate, to keep those that cost least",
                    err=True,
                )
            return str(count)
        advice = self._measured(model, config, count) if self.data else recommend(str(self.analysis), keep=count)
        typer.echo(f"Recommended: {advice}")
        return advice

    def _measured(self, model: str, config: PretrainedConfig, count: int | None) -> Recommendation:
        from inheritune.spectra.advice import recommend_by_price
        from inheritune.surgery.prices import check_choice, choice_windows, measure_prices

        windows = choice_windows(model, str(self.data), self.separator, self.field)
        check_choice(windows, config)
        return recommend_by_price(measure_prices(None, model, windows, depth=count), count)
