"""Bayes by backpropagation for LoRA (BLoB, Wang et al. 2024): A is Gaussian, B is not, both learned by gradients.

q(A) = N(M, diag(G^4)): standard deviation G^2, prior N(0, sigma_p^2) on every entry of A.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.trainer_utils import TrainOutput

from uq4ct.adapters.sites import flattens_tokens
from uq4ct.scoring import items_of_rows
from uq4ct.training import CalibratedTrainer
from uq4ct.variational.posterior import save_stds, saved_name


class GaussianLinear(nn.Linear):
    """LoRA's A with random entries: weight M and, of the same shape, ``root_std`` G.

    In training every question of the batch meets a draw of its own, the same for all of its tokens, at the price of one
    (Flipout, Wen et al. 2018): x (M + s r^T * G^2 * noise)^T with signs r, s per question. In evaluation it is x M^T.
    ``root_std`` starts uniform in [epsilon / sqrt 2, epsilon]. PEFT saves and loads both tensors.
    """

    def __init__(self, mean: nn.Linear, epsilon: float, flattened: bool = False):
        super().__init__(mean.in_features, mean.out_features, bias=False, device="meta")
        self.weight = mean.weight
        root_std = torch.empty_like(mean.weight).uniform_(epsilon / math.sqrt(2), epsilon)
        self.root_std = nn.Parameter(root_std, requires_grad=mean.weight.requires_grad)
        self.item: Tensor | None = None  # the question of each row of the batch; without it each row is one
        self.flattened = flattened  # the input is (row x token, in)

    def forward(self, input: Tensor) -> Tensor:
        """Return A x for (row, ..., in), of shape (row, ..., rank)."""
        mean = super().forward(input)
        if not self.training:
            return mean
        noise = self.root_std**2 * torch.randn_like(self.weight)
        ones = [1] * (input.dim() - 2)
        item = self._item_of(input)
        questions = len(input) if item is None else int(item[-1]) + 1
        of_input = _signs(input, questions, *ones, self.in_features)
        of_output = _signs(input, questions, *ones, self.out_features)
        if item is not None:
            of_input, of_output = of_input[item], of_output[item]
        return mean + nn.functional.linear(input * of_input, noise) * of_output

    def _item_of(self, input: Tensor) -> Tensor | None:
        """Return the question of each of the input's first dimension, or None where each is one."""
        if self.item is None:
            return None
        if self.flattened:
            return self.item.repeat_interleave(len(input) // len(self.item))
        return self.item if len(self.item) == len(input) else None


def _signs(like: Tensor, *shape: int) -> Tensor:
    return torch.randint(0, 2, shape, device=like.device).to(like.dtype) * 2 - 1


def kl_divergence(mean: Tensor, std: Tensor, prior_std: float) -> Tensor:
    """Return KL(N(mean, std^2) || N(0, prior_std^2)) in nats, summed over all entries.

    >>> round(kl_divergence(torch.tensor([0.3]), torch.tensor([0.1]), 0.2).item(), 6)
    1.443147
    """
    return ((std**2 + mean**2) / (2 * prior_std**2) - torch.log(std / prior_std) - 0.5).sum()


def gaussian_linears(model: nn.Module) -> list[tuple[str, GaussianLinear]]:
    """Return the Gaussian layers of a model with their paths."""
    return [(path, module) for path, module in model.named_modules() if isinstance(module, GaussianLinear)]


def make_gaussian(model: nn.Module, epsilon: float) -> None:
    """Give every A of a PEFT model's adapter "default" a standard deviation; the base and B are not touched."""
    for path, module in list(model.named_modules()):
        if path.endswith("lora_A.default"):
            layer = model.get_submodule(path.rsplit(".", 3)[0])  # of the linear that is adapted
            model.set_submodule(path, GaussianLinear(cast(nn.Linear, module), epsilon, flattens_tokens(layer)))


def take_stds(model: nn.Module) -> dict[str, Tensor]:
    """Make every Gaussian layer plain again, with its mean; return the standard deviations by their names in a file."""
    stds = {}
    for path, module in gaussian_linears(model):
        stds[saved_name(f"{path}.weight")] = (module.root_std.detach() ** 2).contiguous()
        plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        plain.weight = module.weight
        model.set_submodule(path, plain)
    return stds


class BackpropTrainer(CalibratedTrainer):
    """Minimise CE + ``kl_weight`` / N * KL(q(A) || prior) over M, G and B, N being the number of training questions.

    With ``kl_weight=1`` this is the negative evidence bound per question, and its minimum the variational posterior.
    ``std_learning_rate`` is G's own. Weight decay is for B alone: the prior is A's. After training the model is a plain
    LoRA of the means, and the standard deviations are in ``state.safetensors`` of the output folder.
    """

    def __init__(
        self,
        model: Any,
        *args: Any,
        epsilon: float,
        prior_std: float,
        kl_weight: float,
        std_learning_rate: float,
        **options: Any,
    ):
        make_gaussian(model, epsilon)
        self.prior_std, self.kl_weight, self.std_learning_rate = prior_std, kl_weight, std_learning_rate
        super().__init__(model, *args, penalty=self.kl_per_question, **options)

    def kl_per_question(self, model: nn.Module) -> Tensor:
        """Return ``kl_weight`` / N * KL of all Gaussian layers."""
        layers = (layer for _, layer in gaussian_linears(model))
        kl = torch.stack([kl_divergence(layer.weight, layer.root_std**2, self.prior_std) for layer in layers]).sum()
        return kl * (self.kl_weight / len(self._examples))

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **options: Any) -> Any:
        """Return this micro-batch's part of the loss; all rows of a question meet the same draw."""
        item, ids = items_of_rows(model, inputs), inputs["input_ids"]
        for _, layer in gaussian_linears(model):
            own_rows = item is None and layer.flattened  # whose number the layer's input does not tell
            layer.item = torch.arange(len(ids), device=ids.device) if own_rows else item
        return super().compute_loss(model, inputs, *args, **options)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return the optimizer of the arguments with three groups: B, M and G."""
        model = cast(Any, self.model if model is None else model)
        layers = [layer for _, layer in gaussian_linears(model)]
        means, roots = [layer.weight for layer in layers], [layer.root_std for layer in layers]
        own = {id(parameter) for parameter in means + roots}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
        kind, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
        groups = [
            {"params": rest, "weight_decay": self.args.weight_decay},
            {"params": means, "weight_decay": 0.0},
            {"params": roots, "weight_decay": 0.0, "lr": self.std_learning_rate},
        ]
        self.optimizer = kind(groups, **settings)
        return self.optimizer

    def train(self, *args: Any, **options: Any) -> TrainOutput:
        """Train, then leave the means in the model and write the standard deviations."""
        output = super().train(*args, **options)
        stds = take_stds(cast(nn.Module, self.model))
        if self.is_world_process_zero():
            save_stds(stds, self._folder)
        return output
