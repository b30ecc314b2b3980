"""The paper's tables and the quickstart: functions that return recipes, beside the published numbers."""

from inheritune.experiments.quickstart import quickstart
from inheritune.experiments.reproduce import EXPERIMENTS, SCALES, reproduce

__all__ = ["EXPERIMENTS", "SCALES", "quickstart", "reproduce"]
