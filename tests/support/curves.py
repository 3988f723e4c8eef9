"""Learning curves with known shapes: they fall by a power of time, and some of them rise again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpo_reports.projection.curves import Curve


def toy_curve(
    name: str,
    group: str,
    *,
    start: float = 5.6,
    fall: float = 0.8,
    power: float = 0.5,
    rise: float = 0.0,
    noise: float = 0.005,
    epochs: int = 20,
    seed: int = 0,
) -> Curve:
    """A curve that starts at `start` nats after one epoch and falls by about `fall`; its gap to training grows."""
    random = np.random.default_rng(seed)
    epoch = np.arange(1.0, epochs + 1)
    share = epoch / epochs
    scale = (share**-power - 1) / (epochs**power - 1)
    losses = start - fall * (1 - scale) + rise * np.maximum(share - 0.5, 0) + noise * random.standard_normal(epochs)
    trained = losses - 0.1 - (0.3 + rise) * share
    return Curve(
        name=name,
        group=group,
        epochs=tuple(epoch),
        val_loss=tuple(losses),
        train_loss=tuple(trained),
        horizon=float(epochs),
    )


def toy_library(curves: int = 32, groups: Sequence[str] = ("a", "b", "c", "d")) -> list[Curve]:
    """Curves of several groups, drawn from one family."""
    random = np.random.default_rng(5)
    return [
        toy_curve(
            f"{groups[number % len(groups)]}-{number}",
            groups[number % len(groups)],
            start=float(random.uniform(5.0, 6.2)),
            fall=float(random.uniform(0.4, 1.1)),
            power=float(random.uniform(0.2, 1.0)),
            rise=float(random.choice([0.0, 0.0, 0.4])),
            seed=number,
        )
        for number in range(curves)
    ]
