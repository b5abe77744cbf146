"""Kept rows: stored rows that every step attends to, beside the budget. `of(layer)`: bool
[H or 1, C]."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .layer import Layer, ends
from .partition import Pages


@dataclass(frozen=True)
class Ends:
    """Sinks and window."""

    of_budget: bool = False  # whether the rows depend on the budget

    def of(self, layer: Layer) -> torch.Tensor:
        return ends(layer)


@dataclass(frozen=True)
class Outliers:
    """Sinks, window, and the pages whose worst key has the lowest cosine to their mean: `pages`
    for every 1,024 rows of budget (ShadowKV's code: 24, pages of 8)."""

    rows: int = 8
    pages: int = 24
    of_budget: bool = True

    def of(self, layer: Layer) -> torch.Tensor:
        keys = layer.keys[:, : layer.stored]
        units = Pages(self.rows).split(layer)
        index = units.of_row.expand(layer.heads, -1)
        mean = units.mean(keys).gather(1, index[:, :, None].expand_as(keys))
        cosine = torch.nn.functional.cosine_similarity(keys, mean, dim=-1)[..., None]
        worst = units.extreme(cosine, largest=False)[..., 0]
        worst = worst.masked_fill(units.cost == 0, 2.0)
        count = min(self.pages * layer.budget // 1024, units.count)
        taken = torch.zeros_like(worst, dtype=torch.bool)
        taken.scatter_(1, worst.topk(count, largest=False).indices, True)
        return taken.gather(1, index) | ends(layer)
