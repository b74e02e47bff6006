"""Noise of a host, made up: trials of an A/A session that are spiky, that drift, or that remember the one before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def steady(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return rng.normal(0, 0.08, n)


def spiky(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """One trial in ten meets a busy neighbour and takes up to half as long again."""
    return rng.normal(0, 0.05, n) + (rng.random(n) < 0.1) * rng.uniform(0.1, 0.5, n)


def drifting(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """The host gets a third slower while the session runs."""
    return rng.normal(0, 0.06, n) + np.linspace(0, 0.3, n)


def autocorrelated(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """A slow trial is followed by slow ones: first-order autoregression with coefficient 0.8."""
    values = np.zeros(n)
    for i in range(1, n):
        values[i] = 0.8 * values[i - 1] + rng.normal(0, 0.06)
    return values


KINDS: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "steady": steady,
    "spiky": spiky,
    "drifting": drifting,
    "autocorrelated": autocorrelated,
}


def session(kind: str, rng: np.random.Generator, blocks: int, factor: float = 1.0) -> tuple[list[float], list[float]]:
    """Seconds of candidate and baseline by block; the order inside a block is drawn, as a plan's is."""
    trials = np.exp(KINDS[kind](rng, 2 * blocks)).reshape(blocks, 2)
    first = rng.integers(0, 2, blocks)
    rows = np.arange(blocks)
    return (factor * trials[rows, first]).tolist(), trials[rows, 1 - first].tolist()
