"""The two sizes of the made world and its model: ``tiny`` is shipped, ``wide`` is for benchmarks on a larger machine."""

from __future__ import annotations

from dataclasses import dataclass

from uq4ct.tiny.world import Size


@dataclass(frozen=True)
class Preset:
    """A world's size, the shape of its Llama, and how it is pre-trained."""

    name: str
    size: Size
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    steps: int
    batch: int
    learning_rate: float


TINY = Preset(
    name="tiny",
    size=Size(
        practised=40, train=18, calibration=8, validation=10, test=28, far=40,
        questions=(
            ("train", 600), ("calibration", 300), ("validation", 500), ("test", 2000),
            ("near", 1000), ("far", 1000), ("unanswerable", 1000), ("relation", 1000), ("wording", 1000),
        ),
    ),
    vocabulary=2048, hidden=128, layers=4, heads=4, feed_forward=344,
    steps=1400, batch=64, learning_rate=2e-3,
)  # fmt: skip

WIDE = Preset(
    name="wide",
    size=Size(
        practised=240, train=100, calibration=40, validation=60, test=160, far=300,
        questions=(
            ("train", 3000), ("calibration", 1500), ("validation", 2500), ("test", 10000),
            ("near", 5000), ("far", 5000), ("unanswerable", 5000), ("relation", 5000), ("wording", 5000),
        ),
    ),
    vocabulary=4096, hidden=320, layers=8, heads=8, feed_forward=864,
    steps=8000, batch=128, learning_rate=1e-3,
)  # fmt: skip

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (TINY, WIDE)}
