"""What the parts of a preset work on: the rows and queries of one layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Layer:
    """Rows and queries of one layer. Rows [0, stored) are sealed: they are partitioned, scored and
    chosen from. Rows behind them are the tail: always attended, causally."""

    index: int
    count: int  # layers of the model
    keys: torch.Tensor  # [H, T, d], after RoPE
    values: torch.Tensor  # [H, T, dv]
    queries: torch.Tensor  # [H, g, n, d], after RoPE
    stored: int
    scale: float
    sinks: int
    window: int
    boundary: torch.Tensor  # [T] of each token: 0 none, 1 clause, 2 sentence, 3 paragraph
    budget: int = 0  # rows that the user gives
    frequency: torch.Tensor | None = None  # of RoPE, [d / 2 or less]; row i is at position i
    prompt_queries: torch.Tensor | None = None  # [H, g, m, d]: of the last m stored tokens
    previous_queries: torch.Tensor | None = None  # [H, g, n, d]: the layer before this one
    ahead_queries: torch.Tensor | None = None  # [H, g, n, d]: this layer's, guessed one layer ahead
    marks: torch.Tensor | None = None  # [T] 0 prompt, 1 written by the model, 3 begins a segment
    kept: torch.Tensor | None = None  # bool [H or 1, C]: stored rows that every step attends to

    def __post_init__(self) -> None:
        if self.kept is None:
            self.kept = ends(self)

    @property
    def heads(self) -> int:
        return self.keys.shape[0]

    @property
    def delimiter(self) -> torch.Tensor:
        """bool [T]: the token ends a sentence."""
        return self.boundary >= 2

    @property
    def group(self) -> int:
        return self.queries.shape[1]

    @property
    def steps(self) -> int:
        return self.queries.shape[2]

    @property
    def dim(self) -> int:
        return self.keys.shape[2]


def ends(layer: Layer) -> torch.Tensor:
    """bool [1, C]: sinks, and the newest `window` stored rows."""
    row = torch.arange(layer.stored)
    return ((row < layer.sinks) | (row >= layer.stored - layer.window))[None]


def half(x: torch.Tensor) -> torch.Tensor:
    """As it comes back from 16 bits, in which abstracts are stored."""
    return x.half().float()


def half_not_above(x: torch.Tensor) -> torch.Tensor:
    """The largest 16-bit value that is not above: a box goes on holding all of its keys."""
    near = half(x)
    below = np.nextafter(near.half().numpy(), np.float16(-np.inf))
    return torch.where(near > x, torch.from_numpy(below).float(), near)
