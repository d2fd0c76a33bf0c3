"""What every router decided during a forward pass, and how the losses get to read it (section 4.2, Eq. 9)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from uq4ct.adapters.noise import Sample, Watched, uniform, watch_tokens


class LayerRouting(NamedTuple):
    """Hold the decisions of one router for every token.

    ``probabilities`` (p) is the softmax over all experts; ``kept`` (R) is p at the token's top-k experts and zero
    elsewhere, NOT rescaled, so that its sum (Eq. 9) follows the router's certainty; ``first`` is the expert with the
    largest p. float32, or float64 in a float64 model.

    >>> p = torch.tensor([[[0.5, 0.3, 0.2]]])
    >>> routing = LayerRouting(p, torch.tensor([[[0.5, 0.3, 0.0]]]), p.argmax(-1))
    >>> routing.weights
    tensor([[[0.6250, 0.3750, 0.0000]]])
    """

    probabilities: Float[Tensor, "*tokens experts"]
    kept: Float[Tensor, "*tokens experts"]
    first: Int[Tensor, "*tokens"]

    @property
    def weights(self) -> Float[Tensor, "*tokens experts"]:
        """The mixing weights w: the kept probabilities rescaled to sum 1, so their sum is no confidence."""
        return self.kept / self.kept.sum(dim=-1, keepdim=True)


class Draw(NamedTuple):
    """Say which random numbers a router draws its experts by."""

    tokens: Watched
    seed: int
    sample: Sample
    site: int

    def uniform(self, hidden: Float[Tensor, "*tokens width"], experts: int) -> Float[Tensor, "*tokens experts"]:
        """Return one number of (0, 1) per token and expert."""
        keys = self.tokens.keys_for(tuple(hidden.shape[:-1]), self.sample)
        return uniform(keys, experts, seed=self.seed, sample=self.sample, site=self.site)


class Routed:
    """Mark a module that owns a router; its forward hands every decision to ``capture``."""

    recording: bool = False
    captured: LayerRouting | None = None
    draw: Draw | None = None  # set by ``sample_routing``: experts are drawn, not the most likely ones taken

    def capture(self, routing: LayerRouting) -> None:
        """Keep the decision while a ``record_routing`` context is open; drop it otherwise."""
        # Two attributes and no callback: a compiled forward traces them without a graph break, and the recomputation
        # of a checkpointed layer finds `recording` switched off once the context has ended.
        if self.recording:
            self.captured = routing

    def router_is_trainable(self) -> bool:
        """Tell whether the router that is in use gets gradients."""
        raise NotImplementedError


class RecordedRouting:
    """The routing of one forward pass, one entry per router in the model's order."""

    def __init__(self, routers: Sequence[Routed]):
        self._routers = routers
        self._closed: tuple[LayerRouting, ...] | None = None

    @property
    def layers(self) -> tuple[LayerRouting, ...]:
        """What was captured so far; fixed from the moment the context ends."""
        if self._closed is not None:
            return self._closed
        return tuple(router.captured for router in self._routers if router.captured is not None)

    def _close(self) -> None:
        self._closed = self.layers


@contextmanager
def record_routing(model: nn.Module) -> Iterator[RecordedRouting]:
    """Record what the routers of ``model`` decide during the forward pass inside the context.

    ``model`` may be wrapped (PeftModel, DistributedDataParallel, a compiled module) or have no router at all, which
    gives an empty record. A second forward pass inside the context replaces the first. Of two contexts open on the
    same router, the inner one records. One thread at a time may run a model that is being recorded.

    Raises RuntimeError at the end of the context when gradients are enabled, a router is trainable and its record has
    no graph: reentrant gradient checkpointing does that, and every loss on the routing would silently train nothing.

    >>> with record_routing(nn.Linear(2, 2)) as routing:
    ...     pass
    >>> routing.layers
    ()
    """
    routers = [module for module in model.modules() if isinstance(module, Routed)]
    outer = [(router.recording, router.captured) for router in routers]
    for router in routers:
        router.recording, router.captured = True, None
    record = RecordedRouting(routers)
    try:
        yield record
        record._close()
        lost = [i for i, router in enumerate(routers) if _lost_its_graph(router)]
        if torch.is_grad_enabled() and lost:
            raise RuntimeError(
                f"The routing recorded at router {lost[0]} of {len(routers)} has no graph although gradients are "
                "enabled, so losses on it would train nothing. Reentrant gradient checkpointing loses it: pass "
                "gradient_checkpointing_kwargs={'use_reentrant': False}. If the forward pass ran under torch.no_grad() "
                "on purpose, put record_routing inside torch.no_grad() too."
            )
    finally:
        for router, (recording, captured) in zip(routers, outer, strict=True):
            router.recording, router.captured = recording, captured


@contextmanager
def sample_routing(model: nn.Module, *, seed: int = 0, sample: Sample = 0) -> Iterator[None]:
    """Let every router of ``model`` draw its experts by their probabilities inside the context: ``sample_experts``.

    A draw depends on seed, sample, router and the token with those before it, and on nothing else of the batch;
    ``sample`` is a number, or one for each row of the batches that run inside. What
    ``record_routing`` sees is still the k most likely experts, given the hidden states of the sampled pass: FEU (Eq. 9)
    says how sure the router is, in [k/N, 1], and not which experts the dice gave. All is as before afterwards.

    >>> with sample_routing(nn.Linear(2, 2), seed=1):
    ...     pass
    """
    routers = [module for module in model.modules() if isinstance(module, Routed)]
    outer = [router.draw for router in routers]
    with watch_tokens(model) as tokens:
        for site, router in enumerate(routers):
            router.draw = Draw(tokens, seed, sample, site)
        try:
            yield
        finally:
            for router, draw in zip(routers, outer, strict=True):
                router.draw = draw


def _lost_its_graph(router: Routed) -> bool:
    captured = router.captured
    return captured is not None and router.router_is_trainable() and not captured.probabilities.requires_grad
