"""How good a model is: fixed-window loss and the paired test, the evaluation harness, speed and memory."""

from inheritune.evaluation.loss import Evaluation, evaluate_windows, window_losses
from inheritune.evaluation.paired import CONFIDENCE, MARGIN, Comparison, compare
from inheritune.evaluation.record import check_output, evaluate
from inheritune.evaluation.speed import generate_sample, measure_speed
from inheritune.evaluation.tasks import run_tasks

__all__ = [
    "CONFIDENCE",
    "MARGIN",
    "Comparison",
    "Evaluation",
    "check_output",
    "compare",
    "evaluate",
    "evaluate_windows",
    "generate_sample",
    "measure_speed",
    "run_tasks",
    "window_losses",
]
