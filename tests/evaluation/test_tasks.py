"""Tasks of the lm-evaluation-harness; with the extra installed, against likelihoods worked out here."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typer.testing import CliRunner

from inheritune.cli import evaluate as command
from inheritune.decoder import load_model, load_tokenizer
from inheritune.errors import DataError, InherituneError
from inheritune.evaluation import evaluate, record, run_tasks, tasks
from inheritune.records.base import read_record
from inheritune.records.evaluation import EvaluationRecord

ROWS = [
    {"query": "Lily has a red", "choices": ["ball and she likes to play", "zq zq zq"], "gold": 0},
    {"query": "The dog was very", "choices": ["xkx", "happy"], "gold": 1},
    {"query": "Once upon a", "choices": ["time there was a girl", "time", "wwww"], "gold": 2},
    {"query": "He went to the park to", "choices": ["play", "q"], "gold": 0},
]


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    file = tmp_path / "small_choices.yaml"
    file.write_text(
        f"""task: small_choices
dataset_path: json
dataset_kwargs:
  data_files: {{"validation": "{rows}"}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""",
        encoding="utf-8",
    )
    return file


def test_without_the_harness_one_line_says_what_to_install(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    message = r"tasks need the evaluation harness: pip install 'inheritune\[eval\]'"
    with pytest.raises(InherituneError, match=message):
        run_tasks(stories, ["arc_easy"])
    with pytest.raises(InherituneError, match=message):
        evaluate(stories, np.zeros((2, 9), dtype=np.int64), tasks=["arc_easy"])


def test_unknown_names_and_files(stories: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(DataError, match=r"unknown task 'arc_eazy'.*did you mean 'arc_easy'"):
        run_tasks(stories, ["arc_eazy"])
    with pytest.raises(DataError, match="no task: expected names"):
        run_tasks(stories, [])
    with pytest.raises(DataError, match="no task file"):
        run_tasks(stories, [str(tmp_path / "none.yaml")])
    (tmp_path / "other.yaml").write_text("a: b\n")
    with pytest.raises(DataError, match=r"no task file .*othr\.yaml: .*did you mean '.*other\.yaml'"):
        run_tasks(stories, [str(tmp_path / "othr.yaml")])
    with pytest.raises(DataError, match="names no task"):
        run_tasks(stories, [str(tmp_path / "other.yaml")])
    with pytest.raises(DataError, match="limit of 0 rows"):
        run_tasks(stories, ["arc_easy"], limit=0)


@pytest.fixture
def own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the harness's own tasks out, thousands of files that are read anew for each folder."""
    manager = pytest.importorskip("lm_eval.tasks").TaskManager
    monkeypatch.setattr(
        tasks, "_task_manager", lambda folders: manager(include_path=list(folders), include_defaults=False)
    )


MISTAKES: dict[str, tuple[str, str, str]] = {
    "a field that the rows lack": ("{{query}}", "{{question}}", "small_choices, .*: 'question' is undefined$"),
    "no output type": ("output_type: multiple_choice\n", "", "cannot run small_choices, whose output_type"),
    "rows that are not there": ("rows.jsonl", "none.jsonl", "cannot run small_choices, .*: .*none.jsonl"),
    "no such metric": ("metric: acc", "metric: accc", "small_choices measures nothing: expected a metric_list"),
    "no such split": (
        "validation_split: validation",
        "validation_split: train",
        "cannot run small_choices, .*: .*train",
    ),
    "code that is not there": ('"{{query}}"', "!function utils.text", "cannot run small_choices, .*: .*utils"),
    "no YAML": ("output_type: multiple_choice", "output_type: [", "cannot read .*small_choices.yaml as YAML at line "),
    "a list of tasks": ("task: small_choices", "task:\n  - small_choices", "names no task"),
}


@pytest.mark.usefixtures("own_tasks")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_task_file_is_one_line_before_anything_is_evaluated(
    stories: Path, task_file: Path, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "evaluate_windows", lambda *_: pytest.fail("a model was evaluated"))
    old, new, message = MISTAKES[mistake]
    text = task_file.read_text(encoding="utf-8")
    assert old in text
    task_file.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        evaluate(stories, np.zeros((2, 9), dtype=np.int64), tasks=[str(task_file)])
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("own_tasks")
def test_the_last_row_is_tried_out_too(stories: Path, task_file: Path) -> None:
    rows = task_file.with_name("rows.jsonl")
    rows.write_text(rows.read_text() + '{"query": "a", "gold": 0}\n')
    with pytest.raises(DataError, match="cannot run small_choices, "):
        evaluate(stories, np.zeros((2, 9), dtype=np.int64), tasks=[str(task_file)])


@pytest.mark.usefixtures("own_tasks")
def test_a_group_is_named_by_its_group(stories: Path, task_file: Path) -> None:
    """Also where `group` stands behind the list of its tasks, and a tag of the harness before it."""
    group = task_file.with_name("group.yaml")
    group.write_text("extra: !function utils.nothing\ntask:\n  - small_choices\ngroup: small_group\n")
    assert tasks._file_task(group) == "small_group"
    group.write_text("task:\n  - small_choices\ngroup: small_group\n")
    assert [row.task for row in run_tasks(stories, [str(group)]).results] == ["small_choices"]


def test_tasks_that_fail_leave_the_record_of_the_loss(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DataError("cannot run the task t: it broke")

    monkeypatch.setattr(record, "check_tasks", lambda *_: None)
    monkeypatch.setattr(record, "run_tasks", fail)
    app = typer.Typer()
    app.command()(command.evaluate)
    text, out = str(stories / "tinystories_sample.txt"), tmp_path / "evaluation.json"
    ask = [str(stories), "--data", text, "--against", str(stories), "--tasks", "t", "--out", str(out)]
    result = CliRunner().invoke(app, ask)
    assert isinstance(result.exception, InherituneError)
    assert str(result.exception) == "cannot run the task t: it broke"
    assert "without the tasks" in result.output
    held = read_record(out, EvaluationRecord)
    assert held.tasks is None
    assert held.comparison is not None and held.comparison.matches
    assert held.evaluation == evaluate(stories, text).evaluation


def likeliest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, row: dict) -> int:
    """The choice with the greatest sum of log probabilities after the query, a space between them."""
    scores = []
    for choice in row["choices"]:
        query, whole = (tokenizer(text)["input_ids"] for text in (row["query"], f"{row['query']} {choice}"))
        with torch.no_grad():
            log = model(torch.tensor([whole[:-1]])).logits[0].double().log_softmax(-1)
        scores.append(sum(log[i - 1, whole[i]].item() for i in range(len(query), len(whole))))
    return int(np.argmax(scores))


def test_accuracy_of_the_real_model(stories: Path, task_file: Path) -> None:
    pytest.importorskip("lm_eval")
    outcome = run_tasks(stories, [str(task_file)])
    model, tokenizer = load_model(stories), load_tokenizer(stories)
    right = [likeliest(model, tokenizer, row) == row["gold"] for row in ROWS]
    assert 0 < sum(right) < len(ROWS), "rows that tell right from wrong"
    (row,) = outcome["results"]
    assert (row["task"], row["metric"], row["shots"], row["samples"]) == ("small_choices", "acc", 0, 4)
    assert row["value"] == np.mean(right)
    assert row["standard_error"] == pytest.approx(np.std(right, ddof=1) / math.sqrt(4))
    assert run_tasks(model, [str(task_file)], limit=2)["results"][0]["samples"] == 2
