"""Where a decoder's attention has collapsed: the rank and column mass of every head.

`capture` watches the model compute its attention, `rank` is the arithmetic on the matrices, `analysis` joins them.
"""

from inheritune.spectra.analysis import analyze, measure, prepare
from inheritune.spectra.capture import visit_attention
from inheritune.spectra.files import load_spectra, save_maps, save_spectra
from inheritune.spectra.maps import attention_maps
from inheritune.spectra.rank import approximate_rank, column_mass, sink_collapse, squared_singular_values
from inheritune.spectra.result import BothSpectra, Spectra

__all__ = [
    "BothSpectra",
    "Spectra",
    "analyze",
    "approximate_rank",
    "attention_maps",
    "column_mass",
    "load_spectra",
    "measure",
    "prepare",
    "save_maps",
    "save_spectra",
    "sink_collapse",
    "squared_singular_values",
    "visit_attention",
]
