"""What the parts of a preset work on: the rows and queries of one layer."""

from __future__ import annotations

from dataclasses import dataclass

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
    delimiter: torch.Tensor  # bool [T]: the token ends a sentence
    prompt_queries: torch.Tensor | None = None  # [H, g, m, d]: of the last m stored tokens
    previous_queries: torch.Tensor | None = None  # [H, g, n, d]: the layer before this one

    @property
    def heads(self) -> int:
        return self.keys.shape[0]

    @property
    def group(self) -> int:
        return self.queries.shape[1]

    @property
    def steps(self) -> int:
        return self.queries.shape[2]

    @property
    def dim(self) -> int:
        return self.keys.shape[2]

    def kept(self) -> torch.Tensor:
        """bool [C]: the stored rows that every step attends to: sinks, and the newest `window`."""
        row = torch.arange(self.stored)
        return (row < self.sinks) | (row >= self.stored - self.window)


def half(x: torch.Tensor) -> torch.Tensor:
    """As it comes back from 16 bits, in which abstracts are stored."""
    return x.half().float()
