"""How good a model is: fixed-window loss and the paired test, the evaluation harness, speed and memory."""

from inheritune.evaluation.generation import compare_speed as compare_speed
from inheritune.evaluation.generation import generate_sample as generate_sample
from inheritune.evaluation.generation import measure_speed as measure_speed
from inheritune.evaluation.loss import evaluate_windows as evaluate_windows
from inheritune.evaluation.loss import window_losses as window_losses
from inheritune.evaluation.paired import compare as compare
from inheritune.evaluation.record import TasksFailedError as TasksFailedError
from inheritune.evaluation.record import check_output as check_output
from inheritune.evaluation.record import evaluate as evaluate
from inheritune.evaluation.tasks import run_tasks as run_tasks
