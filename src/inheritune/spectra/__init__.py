"""Where a decoder's attention has collapsed: the rank and column mass of every head.

`capture` watches the model compute its attention, `rank` is the arithmetic on the matrices, `analysis` joins them.
"""

from inheritune.spectra.analysis import analyze, check_gradients, prepare
from inheritune.spectra.files import load_spectra, save_maps, save_spectra
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
from inheritune.spectra.recommend import Recommendation, load_recommendation, recommend
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
    "approximate_rank",
    "attention_maps",
    "check_gradients",
    "column_mass",
    "gradient_probe",
    "load_recommendation",
    "load_spectra",
    "prepare",
    "rank_and_mass",
    "recommend",
    "row_entropy",
    "save_maps",
    "save_spectra",
    "sink_collapse",
    "squared_singular_values",
    "stable_rank",
    "visit_attention",
]
