"""How good a model is: fixed-window loss and the paired test, the evaluation harness, speed and memory."""

from inheritune.evaluation.generation import compare_speed, generate_sample, measure_speed
from inheritune.evaluation.loss import Evaluation, evaluate_windows, window_losses
from inheritune.evaluation.paired import CONFIDENCE, MARGIN, compare
from inheritune.evaluation.record import TasksFailedError, check_output, evaluate
from inheritune.evaluation.tasks import run_tasks
from inheritune.records.evaluation import Comparison

__all__ = [
    "CONFIDENCE",
    "MARGIN",
    "Comparison",
    "Evaluation",
    "TasksFailedError",
    "check_output",
    "compare",
    "compare_speed",
    "evaluate",
    "evaluate_windows",
    "generate_sample",
    "measure_speed",
    "run_tasks",
    "window_losses",
]
