"""What `inheritune analyze` wrote about a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inheritune.records.analysis import AnalysisRecord, AttentionMap, LayerMeasures, Mask, Recommendation
from inheritune.records.base import read_record
from inheritune.records.prices import PricesRecord
from inheritune.spectra import folder as files
from inheritune.spectra.advice import recommend_by_price


@dataclass(frozen=True)
class Analysis:
    """The analysis of one model.

    Attributes:
        record: the content of spectra.json.
        maps: the attention maps of maps.json; none where there is no such file.
        prices: the content of prices.json; None where the layers were not left out.
    """

    record: AnalysisRecord
    maps: tuple[AttentionMap, ...] = ()
    prices: PricesRecord | None = None

    @property
    def advice(self) -> Recommendation | None:
        """What is recommended: by what the layers cost, where that was measured."""
        return recommend_by_price(self.prices) if self.prices else self.record.recommendation

    @property
    def masks(self) -> list[Mask]:
        """The masks it was made with, `causal` first."""
        return sorted(self.record.masks)

    @property
    def depth(self) -> int:
        """The number of layers of the model; of an older record, up to the last that was analysed."""
        return self.record.depth or 1 + self.record.layers[-1].index

    def under(self, mask: Mask) -> list[tuple[int, LayerMeasures]]:
        """Return the index and the measures of each layer that has attention; nothing for a mask it was not made with.

        The lists of `LayerMeasures` have an entry for each head.
        """
        return [(layer.index, part) for layer in self.record.layers if (part := layer[mask]) is not None]

    def lazy_layers(self, mask: Mask) -> list[int]:
        """Return the lazy layers (MaxRank = 1, Def. G.1 of the paper), numbered from 0."""
        return [index for index, part in self.under(mask) if part.lazy]


def load_analysis(folder: Path, measured: Path | None = None) -> Analysis:
    """Read the folder of an analysis; `measured` is that of its prices, where they are in another.

    Raises:
        OutputError: a file is damaged, or of a later version, or spectra.json is missing.
    """
    path = (measured or folder) / files.PRICES
    prices = read_record(path, PricesRecord) if path.is_file() else None
    return Analysis(files.read_analysis(folder), files.read_maps(folder), prices)
