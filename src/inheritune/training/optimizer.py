"""The optimiser of a round and its schedule."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel
from typing_extensions import override

from inheritune.training.settings import TrainingSettings


def make_optimizer(model: PreTrainedModel, settings: TrainingSettings) -> tuple[Optimizer, LambdaLR]:
    """Return the optimiser and its schedule; weight decay is on matrices and embeddings, not on norms and biases.

    That is the paper's AdamW (App. F). With `muon` the matrices of the blocks are Muon's, all else is AdamW's.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    peak, decay = settings.learning_rate, settings.weight_decay
    matrices = []
    if settings.optimizer == "muon":  # neither embeddings, of tokens or positions, nor the head
        ends = [*(each for each in model.modules() if isinstance(each, nn.Embedding)), model.get_output_embeddings()]
        excluded = {id(each.weight) for each in ends if each is not None}
        matrices = [p for p in parameters if p.ndim == 2 and id(p) not in excluded]
    taken = set(map(id, matrices))
    rest = [p for p in parameters if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer: Optimizer = AdamW(groups, lr=peak, betas=(settings.beta1, settings.beta2), fused=True)
    if matrices:
        optimizer = MuonAndAdamW(Muon(matrices, peak, decay, adjust_lr_fn="match_rms_adamw"), optimizer)
    return optimizer, LambdaLR(optimizer, lambda step: settings.rate(step))  # a share of the optimiser's rate


class MuonAndAdamW(Optimizer):
    """Muon for some parameters and AdamW for the others, as one optimiser: one state, one list of groups.

    Muon's step is scaled to the size of AdamW's (arXiv 2502.16982), so that both take one learning rate.
    """

    def __init__(self, muon: Muon, adamw: Optimizer) -> None:
        self.parts = (muon, adamw)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let both parts work on this optimiser's groups and state."""
        muon, adamw = self.parts
        muon.param_groups, adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        muon.state = adamw.state = self.state

    @override
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do one step of both; `closure` gives the loss anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._share()
