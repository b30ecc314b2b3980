"""Where a decoder's attention has collapsed: the rank and column mass of every head.

`watch` sees the model compute its attention, `measure` is the arithmetic on the matrices, `analysis` joins them, and
`flow` is the whole way from a model to the folder of an analysis.
"""

from inheritune.records.analysis import Recommendation
from inheritune.spectra.advice import load_recommendation, recommend
from inheritune.spectra.analysis import analyze
from inheritune.spectra.flow import analyze_into
from inheritune.spectra.folder import (
    load_spectra,
    read_analysis,
    read_maps,
    save_maps,
    save_spectra,
)
from inheritune.spectra.gradients import GradientProbe, gradient_probe
from inheritune.spectra.maps import attention_maps
from inheritune.spectra.measure.blocks import BlockMeasures, BlockObserver
from inheritune.spectra.measure.heads import row_entropy
from inheritune.spectra.measure.rank import (
    approximate_rank,
    column_mass,
    rank_and_mass,
    sink_collapse,
    squared_singular_values,
    stable_rank,
)
from inheritune.spectra.result import BothSpectra, Spectra
from inheritune.spectra.watch.capture import visit_attention

__all__ = [
    "BlockMeasures",
    "BlockObserver",
    "BothSpectra",
    "GradientProbe",
    "Recommendation",
    "Spectra",
    "analyze",
    "analyze_into",
    "approximate_rank",
    "attention_maps",
    "column_mass",
    "gradient_probe",
    "load_recommendation",
    "load_spectra",
    "rank_and_mass",
    "read_analysis",
    "read_maps",
    "recommend",
    "row_entropy",
    "save_maps",
    "save_spectra",
    "sink_collapse",
    "squared_singular_values",
    "stable_rank",
    "visit_attention",
]
