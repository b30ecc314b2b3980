"""The paper's tables and the quickstart: functions that return recipes, beside the published numbers."""

from inheritune.experiments.quickstart import quickstart as quickstart
from inheritune.experiments.reproduce import EXPERIMENTS as EXPERIMENTS
from inheritune.experiments.reproduce import reproduce as reproduce
