"""IVON (Shen et al. 2024, Algorithm 1) on LoRA weights (Cong et al. 2024): an optimizer that learns a Gaussian."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.trainer_utils import TrainOutput

from uq4ct.training import CalibratedTrainer
from uq4ct.variational.posterior import adapter_tensors, generator, save_stds

TRAINING = 2


class Ivon(torch.optim.Optimizer):
    """Improved variational online Newton for q = N(m, 1 / (lambda (h + delta))), with lambda = ``ess``.

    The parameters hold the means m; h estimates the diagonal of the Hessian of the mean loss, delta = ``weight_decay``
    is the prior's precision over lambda. Each update takes the gradient g at one draw, inside ``sampled()``:

        h'  = g * noise / std
        mu <- beta1 mu + (1 - beta1) g
        h  <- beta2 h + (1 - beta2) h' + (1 - beta2)^2 / 2 * (h - h')^2 / (h + delta)
        m  <- m - lr clip((mu / (1 - beta1^t) + delta m) / (h + delta), radius)

    The last term of h keeps h + delta positive. lr is not rescaled by the first h + delta, as in the work on LoRA. The
    draw is a function of ``seed`` and the number of the update: all micro-batches and processes of an update share it,
    and a resumed training draws what an uninterrupted one does.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        *,
        ess: float,
        hess_init: float,
        beta1: float = 0.9,
        beta2: float = 0.99999,
        weight_decay: float = 0.0,
        clip_radius: float = 1e-3,
        seed: int = 0,
    ):
        settings = {"ess": ess, "hess_init": hess_init, "beta1": beta1, "beta2": beta2, "clip_radius": clip_radius}
        super().__init__(list(params), {"lr": lr, "weight_decay": weight_decay, **settings})
        self.seed = seed

    def stds(self) -> list[Tensor]:
        """Return the standard deviation of every parameter, in order."""
        return [self._std(group, parameter) for group, parameter in self._all()]

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Replace the means by this update's draw, and put the very same means back afterwards."""
        means = [parameter.detach().clone() for _, parameter in self._all()]
        try:
            with torch.no_grad():
                for (group, parameter), noise in zip(self._all(), self._noise(), strict=True):
                    parameter.add_(self._std(group, parameter) * noise)
            yield
        finally:
            with torch.no_grad():
                for (_, parameter), mean in zip(self._all(), means, strict=True):
                    parameter.copy_(mean)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # there is one gradient, at the draw
        """Update Hessian and means from the gradients, which must be those at this update's draw."""
        for (group, parameter), noise in zip(self._all(), list(self._noise()), strict=True):
            state, gradient = self._state(group, parameter), parameter.grad
            if gradient is None:
                raise ValueError("Ivon: a parameter has no gradient")
            state["step"] += 1
            beta1, beta2, delta = group["beta1"], group["beta2"], group["weight_decay"]
            hess = state["hess"]
            found = gradient * noise / self._std(group, parameter)
            state["momentum"] = beta1 * state["momentum"] + (1 - beta1) * gradient
            correction = 0.5 * (1 - beta2) ** 2 * (hess - found) ** 2 / (hess + delta)
            state["hess"] = hess = beta2 * hess + (1 - beta2) * found + correction
            momentum = state["momentum"] / (1 - beta1 ** state["step"])
            newton = (momentum + delta * parameter) / (hess + delta)
            parameter.sub_(group["lr"] * newton.clamp(-group["clip_radius"], group["clip_radius"]))

    def _all(self) -> Iterator[tuple[dict[str, Any], nn.Parameter]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                yield group, parameter

    def _noise(self) -> Iterator[Tensor]:
        """Yield this update's standard normal noise, parameter by parameter."""
        group, first = next(self._all())
        noise = generator(first.device, TRAINING, self.seed, self._state(group, first)["step"])
        for _, parameter in self._all():
            yield torch.randn(parameter.shape, generator=noise, device=first.device, dtype=parameter.dtype)

    def _std(self, group: dict[str, Any], parameter: nn.Parameter) -> Tensor:
        hess = self._state(group, parameter)["hess"]
        return (group["ess"] * (hess + group["weight_decay"])).rsqrt()

    def _state(self, group: dict[str, Any], parameter: nn.Parameter) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["momentum"] = torch.zeros_like(parameter)
            state["hess"] = torch.full_like(parameter, group["hess_init"])
        return state


class IvonTrainer(CalibratedTrainer):
    """Train a LoRA by IVON: every gradient is taken at a draw of the weights, and the means are what is saved.

    ``ivon`` are the optimizer's settings; without an ``lr`` it is that at which no entry moves further in one step than
    ``args.learning_rate``. The optimizer clips each entry of a step itself, so the norm of the gradient is left alone.
    After training the standard deviations are in ``state.safetensors`` of the output folder.
    """

    def __init__(self, model: Any, args: Any, *rest: Any, ivon: dict[str, float], **options: Any):
        args = copy.copy(args)
        args.max_grad_norm = 0.0
        self.ivon_settings = ivon
        super().__init__(model, args, *rest, **options)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return IVON over every trainable parameter."""
        model = self.model if model is None else model
        settings = {"lr": self.args.learning_rate / self.ivon_settings["clip_radius"], **self.ivon_settings}
        self.ivon = Ivon(adapter_tensors(model).values(), seed=self.args.seed, **settings)
        self.optimizer = self.ivon
        return self.optimizer

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        """Take one micro-batch's gradient at the update's draw."""
        with self.ivon.sampled():
            return super().training_step(*args, **options)

    def _finished(self, checkpoint: Path) -> TrainOutput | None:
        if output := super()._finished(checkpoint):  # no step is left, but the Hessian is the optimizer's
            self.create_optimizer_and_scheduler(self.state.max_steps)
            self._load_optimizer_and_scheduler(str(checkpoint))
        return output

    def train(self, *args: Any, **options: Any) -> TrainOutput:
        """Train, then write the standard deviations."""
        output = super().train(*args, **options)
        if self.is_world_process_zero():
            names = adapter_tensors(cast(nn.Module, self.model))
            save_stds(dict(zip(names, self.ivon.stds(), strict=True)), self._folder)
        return output
