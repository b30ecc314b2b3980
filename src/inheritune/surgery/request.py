"""A model to be made and saved: its plan checked on configurations alone, then its folder, card and record.

What the files of earlier commands say of its sources is read here too: which model an analysis is of, and what a target
was made of.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from transformers import PretrainedConfig

from inheritune.data import tuning_windows
from inheritune.decoder import count_parameters, load_tokenizer, save_model
from inheritune.decoder.source import Place, model_identity
from inheritune.errors import InherituneWarning, PlanError
from inheritune.evaluation.windows import context_of
from inheritune.records.base import environment, now, read_record
from inheritune.records.surgery import ParameterCounts, SurgeryRecord
from inheritune.spectra.advice import read_measured
from inheritune.surgery.assembly import inherit
from inheritune.surgery.card import model_card
from inheritune.surgery.config.blueprint import Draft, blueprint
from inheritune.surgery.config.target import depth_of, has_attention
from inheritune.surgery.files.carried import TOKENIZER, fetch_files, finish_folder
from inheritune.surgery.files.checkpoint import copy_checkpoint, locate_sources
from inheritune.surgery.plan.layer_plan import LayerPlan
from inheritune.surgery.repair import WINDOW_LENGTH, WINDOWS, check_repairable
from inheritune.surgery.width import describe_width, narrow_config

RECORD = "inherit.json"
"""What a model's folder says of the surgery that made it."""


def check_same_model(analysis: str | Path, model: str) -> None:
    """Refuse an analysis of another model than `model`, by what both are; warn where only their names can be compared.

    Raises:
        PlanError: it is of another model.
        OutputError: the folder holds no analysis.
    """
    record = read_measured(Path(analysis).expanduser())
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


@dataclass(frozen=True)
class SurgeryRequest:
    """What is to be made; nothing but configurations is read until it is written.

    `repair` is the text that a repair is fitted to, shards or any other source. The other fields are as `inherit` and
    `inherit_checkpoint` take them; `config` is that of `model`, the reference, and `target_config` that of the target,
    where there is one.
    """

    model: str
    target: str | None
    config: PretrainedConfig
    target_config: PretrainedConfig | None
    plan: LayerPlan
    width: str | None = None
    repair: str | None = None
    seed: int = 0
    max_shard_size: str = "5GB"
    revision: str | None = None
    trust_remote_code: bool = False

    @cached_property
    def draft(self) -> Draft:
        """The new model on the meta device, at full width; what does not fit is found here, see `Draft.of`."""
        return Draft.of(self.plan, self.config, self.target_config)

    @cached_property
    def parameters(self) -> ParameterCounts:
        """As `Draft.parameters`, at the width that stays.

        Raises:
            PlanError: the plan or the width does not fit.
        """
        counts = self.draft.parameters
        if self.width is None:
            return counts
        narrow = count_parameters(blueprint(narrow_config(self.draft.config, self.width)))
        return ParameterCounts(before=counts.before, after=narrow)

    def describe(self) -> str:
        """Return the plan as text, with the number of parameters and what the user should know before it is made."""
        if self.repair is not None:
            check_repairable(self.plan, depth_of(self.config), self.width)
        counts = self.parameters
        said = [] if self.width is None else [f"width: {describe_width(self.config, self.width)}"]
        said += self._notes
        # A KV cache needs a layer with attention, which a hybrid may have lost.
        if has_attention(self.draft.sources["reference"].config) and not has_attention(self.draft.new.config):
            said.append("note: no attention layer is left; transformers' generate fails here unless use_cache=False")
        if any(row.zero_output for row in self.plan):
            said.append(
                f"note: whether {self.config.model_type} can start layers without output is tried when they are made"
            )
        share = counts.after / counts.before
        return "\n".join([str(self.plan), *said, f"parameters: {counts.before:,} -> {counts.after:,} ({share:.0%})"])

    @property
    def _notes(self) -> list[str]:
        """What is done to the layers beside taking them, for the plan and the card, a line each."""
        repair = f"repair: a linear map for each gap, fitted to {self.repair}, in the MLP before it"
        return self.draft.notes if self.repair is None else [*self.draft.notes, repair]

    def write(self, out: Path, command: str) -> None:
        """Write the model's folder and the record: from file to file where that can be, else through memory.

        What the user should know of the result (NaN in it, no tokenizer, an unreadable licence) is a warning. `out` is
        a new or empty folder, and `command` what the card says made it.
        """
        places = locate_sources(self.model, self.target, self.revision)
        rest = places.get(self.plan.rest, places["reference"])
        if self._is_copy():
            copy_checkpoint(self.draft, places, out, max_shard_size=self.max_shard_size, command=command)
        else:
            self._build(places, out, command, rest.folder)
        if not any(path for pattern in TOKENIZER for path in out.glob(pattern)):
            warnings.warn(f"saved without a tokenizer: {rest.name} has none", InherituneWarning, stacklevel=2)
        SurgeryRecord(
            source=self.model,
            identity=model_identity(self.model),
            target=self.target,
            layers=len(self.plan),
            plan=tuple(self.plan.as_records()),
            width=self.width,
            repair=self.repair,
            seed=self.seed,
            parameters=self.parameters,
            created=now(),
            environment=environment(),
        ).write(out / RECORD)

    def _is_copy(self) -> bool:
        """Return whether the files of the sources hold all there is to write, bit for bit."""
        if self.width is not None or self.repair is not None:
            return False
        try:
            self.draft.check_copyable()
        except PlanError:  # the plan itself fits: it needs a model in memory
            return False
        return True

    def _build(self, places: Mapping[str, Place], out: Path, command: str, rest: Path) -> None:
        windows = None
        if self.repair is not None:  # (N, T) int64, of text that nothing is judged on
            tokenizer = load_tokenizer(self.model, revision=self.revision, trust_remote_code=self.trust_remote_code)
            length = min(context_of(self.config) or WINDOW_LENGTH, WINDOW_LENGTH)
            windows = tuning_windows(self.repair, tokenizer, length - 1, WINDOWS)
        built = inherit(
            self.model,
            plan=self.plan,
            target=self.target,
            width=self.width,
            repair=windows,
            seed=self.seed,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
        )
        for place in places.values():
            fetch_files(place)
        width = "" if self.width is None else describe_width(self.config, self.width)
        card = model_card(out.name, self.plan, places, self.parameters, command, width, notes=self._notes)
        finish = partial(finish_folder, source=rest, card=card)
        save_model(built, out, max_shard_size=self.max_shard_size, replace=False, finish=finish)
