"""Build smaller, equally good decoder language models by inheriting the layers whose attention has not collapsed.

Sanyal, Shwartz-Ziv, Dimakis, Sanghavi: "When Attention Collapses", arXiv 2404.08634.

The names below are the public surface. They are imported on first use, so that `import inheritune` (and `inheritune
--help`) does not wait for torch and transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inheritune.evaluation import evaluate
    from inheritune.recipes import plan, run
    from inheritune.recipes.frontier import frontier
    from inheritune.report import write_report as report
    from inheritune.spectra.advice import recommend
    from inheritune.spectra.analysis import analyze
    from inheritune.spectra.gradients import gradient_probe
    from inheritune.surgery.ablation import ablate
    from inheritune.surgery.assembly import inherit
    from inheritune.surgery.files.checkpoint import inherit_checkpoint
    from inheritune.surgery.plan.layer_plan import LayerPlan

__version__ = "0.2.0"

_HOME = {
    "InherituneError": "inheritune.errors",
    "LayerPlan": "inheritune.surgery",
    "ablate": "inheritune.surgery.ablation",
    "analyze": "inheritune.spectra.analysis",
    "frontier": "inheritune.recipes.frontier",
    "gradient_probe": "inheritune.spectra.gradients",
    "recommend": "inheritune.spectra.advice",
    "evaluate": "inheritune.evaluation",
    "inherit": "inheritune.surgery",
    "inherit_checkpoint": "inheritune.surgery",
    "plan": "inheritune.recipes",
    "run": "inheritune.recipes",
}

__all__ = [
    "InherituneError",
    "LayerPlan",
    "ablate",
    "analyze",
    "evaluate",
    "frontier",
    "gradient_probe",
    "inherit",
    "inherit_checkpoint",
    "plan",
    "recommend",
    "report",
    "run",
]


def __getattr__(name: str) -> Any:
    if name == "report":  # a package of that name, which can be called
        return importlib.import_module("inheritune.report")
    if name not in _HOME:
        raise AttributeError(f"module 'inheritune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
