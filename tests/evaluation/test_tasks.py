"""Tasks of the lm-evaluation-harness; with the extra installed, against likelihoods worked out here."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inheritune.decoder import load_model, load_tokenizer
from inheritune.errors import DataError, InherituneError
from inheritune.evaluation import evaluate, run_tasks

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
    with pytest.raises(DataError, match="names no task"):
        run_tasks(stories, [str(tmp_path / "other.yaml")])
    with pytest.raises(DataError, match="limit of 0 rows"):
        run_tasks(stories, ["arc_easy"], limit=0)


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
