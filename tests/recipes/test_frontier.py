"""The frontier: its points are single runs, what they share is made once, and it goes on where it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from test_runs import recipe, setting, stable, weights

import inheritune as it
from inheritune.errors import InherituneError, PlanError, RecipeError
from inheritune.recipes import frontier as frontier_module  # noqa: F401
from inheritune.records.base import read_record
from inheritune.records.prices import PricesRecord
from inheritune.records.runs import FrontierRecord, RunRecord
from inheritune.spectra.advice import recommend_by_price
from inheritune.surgery.prices import measure_prices

assert setting  # the fixture
