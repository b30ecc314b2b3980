"""What the files of earlier commands say of a model: which one an analysis is of, and what a target was made of."""

from __future__ import annotations

import warnings
from pathlib import Path

from inheritune.decoder.source import model_identity
from inheritune.errors import InherituneWarning, PlanError
from inheritune.records.base import read_record
from inheritune.records.surgery import SurgeryRecord
from inheritune.spectra.folder import read_analysis
from inheritune.surgery.plan.layer_plan import LayerPlan

RECORD = "inherit.json"
"""What a model's folder says of the surgery that made it."""


def check_same_model(analysis: str | Path, model: str) -> None:
    """Refuse an analysis of another model than `model`, by what both are; warn where only their names can be compared.

    Raises:
        PlanError: it is of another model.
        OutputError: the folder holds no analysis.
    """
    record = read_analysis(Path(analysis).expanduser())
    identity, analysed = model_identity(model), record.model
    if record.identity is not None and identity is not None:
        if record.identity != identity:
            raise PlanError(f"{analysis} is the analysis of another model ({analysed}) than {model}: analyse {model}")
        return
    if analysed not in (None, model) and Path(str(analysed)).resolve() != Path(model).resolve():
        warnings.warn(f"{analysis} is the analysis of {analysed}, not of {model}", InherituneWarning, stacklevel=2)


def start_of(target: str | Path, reference: str) -> LayerPlan | None:
    """Return the plan by which a target was cut from `reference`; None where its folder does not say so.

    Raises:
        OutputError: its record is damaged.
    """
    path = Path(target).expanduser() / RECORD
    if not path.is_file():
        return None
    record = read_record(path, SurgeryRecord)
    same = record.identity == model_identity(reference) if record.identity else record.source == reference
    return LayerPlan.from_records(record.plan) if same and record.target is None else None
