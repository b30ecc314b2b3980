"""A model to be made and saved: its plan checked on configurations alone, then its folder, card and record."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune import storage
from inheritune.decoder import NoTokenizerError, count_parameters, load_tokenizer, save_model
from inheritune.errors import PlanError
from inheritune.records.base import environment, now
from inheritune.surgery.card import CARD, LICENCES, model_card, place_of
from inheritune.surgery.config.blueprint import blueprint, draft
from inheritune.surgery.files.checkpoint import carry_files, check_whole, inherit_checkpoint
from inheritune.surgery.inherit import inherit
from inheritune.surgery.plan.layer_plan import LayerPlan
from inheritune.surgery.width import describe_width, narrow_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

RECORD = "inherit.json"


@dataclass(frozen=True)
class Order:
    """What is to be made, checked and ready: building it reads weights for the first time.

    Attributes:
        model: the reference, a folder or a hub id.
        target: the model that grows, likewise, or None.
        config: the reference's configuration.
        target_config: the target's, or None.
        plan: where each layer comes from.
        width: the share of the width that stays, or None for all.
        seed: of what is random.
        max_shard_size: of the files that are written.
        revision: of the reference on the hub.
        trust_remote_code: whether a model may bring its own code.
    """

    model: str
    target: str | None
    config: PretrainedConfig
    target_config: PretrainedConfig | None
    plan: LayerPlan
    width: str | None
    seed: int
    max_shard_size: str
    revision: str | None
    trust_remote_code: bool

    @cached_property
    def parameters(self) -> dict[str, int]:
        """The numbers of parameters before and after; the plan is checked on the way.

        Before is the target where one grows, else the reference.

        Raises:
            PlanError: the plan or the width does not fit.
        """
        new_config, reference, new = draft(self.config, self.plan, self.target_config)
        made = new.model if self.width is None else blueprint(narrow_config(new_config, self.width))
        before = reference.model if self.target_config is None else blueprint(self.target_config)
        return {"before": count_parameters(before), "after": count_parameters(made)}

    def describe(self) -> str:
        """Return the plan as text, with the number of parameters."""
        sizes = self.parameters
        share = sizes["after"] / sizes["before"]
        said = [] if self.width is None else [f"width: {describe_width(self.config, self.width)}"]
        if getattr(self.config, "scale_attn_by_inverse_layer_idx", False) and any(
            row.source not in (None, place) for place, row in enumerate(self.plan)
        ):
            said.append(
                "scale: a moved layer's attention is scaled by 1 / (its new number + 1), as the model's code has it"
            )
        counted = f"parameters: {sizes['before']:,} -> {sizes['after']:,} ({share:.0%})"
        return "\n".join([str(self.plan), *said, counted])

    def fill(self, out: Path, command: str) -> str:
        """Write the model's folder and the record: from file to file where that can be, else through memory.

        Args:
            out: a new or empty folder.
            command: what the card says made it.

        Returns:
            A note for the user, or nothing.
        """
        note = ""
        if self.is_copy():
            inherit_checkpoint(
                self.model,
                out,
                plan=self.plan,
                target=self.target,
                max_shard_size=self.max_shard_size,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
                command=command,
            )
        else:
            note = self._build(out, command)
        storage.write_json(out / RECORD, self.as_record())
        return note

    def is_copy(self) -> bool:
        """Return whether the files of the sources hold all there is to write, bit for bit."""
        if self.width is not None:
            return False
        try:
            check_whole(self.config, self.plan, self.target_config)
        except PlanError:  # the plan itself was found to fit: it needs a model in memory
            return False
        return True

    def _build(self, out: Path, command: str) -> str:
        built = inherit(
            self.model,
            plan=self.plan,
            target=self.target,
            width=self.width,
            seed=self.seed,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
        )
        note = ""
        try:
            tokenizer = load_tokenizer(self.model, revision=self.revision, trust_remote_code=self.trust_remote_code)
        except NoTokenizerError as error:
            tokenizer, note = None, f"saved without a tokenizer: {error}"
        source = place_of(self.model, self.revision)
        card = model_card(
            name=out.name,
            plan=self.plan,
            source=source,
            target=None if self.target is None else place_of(self.target),
            parameters=(self.parameters["before"], self.parameters["after"]),
            command=command,
            width="" if self.width is None else describe_width(self.config, self.width),
        )

        def finish(folder: Path) -> None:
            carry_files(source[1], folder, LICENCES)
            storage.write_text(folder / CARD, card)

        save_model(built, out, tokenizer, max_shard_size=self.max_shard_size, replace=False, finish=finish)
        return note

    def as_record(self) -> dict[str, Any]:
        """Return what was made from what, as plain data."""
        return {
            "kind": "inherit",
            "schema": 1,
            "source": self.model,
            "target": self.target,
            "layers": len(self.plan),
            "plan": self.plan.as_records(),
            "width": self.width,
            "seed": self.seed,
            "parameters": self.parameters,
            "created": now(),
            "environment": environment().as_json(),
        }
