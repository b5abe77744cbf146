"""Search: how the best units are found. `choose(queries, steps, units, vectors, preset, layer,
rows)`, the queries those of these steps: bool [S, n, C]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .bound import attended
from .budget import fit
from .layer import Layer
from .partition import Pages


@dataclass(frozen=True)
class Flat:
    """Every unit is scored."""

    def choose(
        self,
        queries: torch.Tensor,
        steps: torch.Tensor,
        units: Any,
        vectors: Any,
        preset: Any,
        layer: Layer,
        rows: int,
    ) -> torch.Tensor:
        scores = preset.score.of(queries, vectors, layer.scale)
        if getattr(preset.group, "of_free", False):
            scores = scores.masked_fill(units.cost[:, None, None] == 0, -torch.inf)
        weights = preset.group.of(scores, layer.scale)
        if hasattr(preset.query, "join"):
            weights = preset.query.join(weights, preset.group)
        if not hasattr(preset.budget, "certify"):
            return preset.budget.choose(weights, units, rows)
        kept = layer.kept[:, None].expand(-1, len(steps), -1)
        held = attended(layer, kept, steps)
        least = preset.score.least(queries, vectors, units.size() == units.cost)
        bounds = scores * layer.scale, least * layer.scale
        return preset.budget.certify(weights, units, rows, bounds, held)


@dataclass(frozen=True)
class Runs:
    """Every row is scored, and `rows` neighbours are taken together by the sum of the masses of
    those that are not kept, which is the log-sum-exp of their scores."""

    rows: int = 16

    def choose(
        self,
        queries: torch.Tensor,
        steps: torch.Tensor,
        units: Any,
        vectors: Any,
        preset: Any,
        layer: Layer,
        rows: int,
    ) -> torch.Tensor:
        mass = preset.group.of(preset.score.of(queries, vectors, layer.scale), layer.scale)
        mass = mass.masked_fill(fit(units.cost, mass) == 0, 0)  # what is kept takes no place
        runs = Pages(self.rows).split(layer)
        total = torch.zeros(*mass.shape[:-1], runs.count).index_add_(-1, runs.of_row[0], mass)
        return preset.budget.choose(total, runs, rows)


@dataclass(frozen=True)
class CoarseToFine:
    """Over the levels of a Tree: the best units until they cover the rows are split in half and
    ranked anew together with the others, which may enter and are then split in turn; once for each
    level (LeoAM's in-code description, papers.md 1.3)."""

    def choose(
        self,
        queries: torch.Tensor,
        steps: torch.Tensor,
        units: Any,
        vectors: Any,
        preset: Any,
        layer: Layer,
        rows: int,
    ) -> torch.Tensor:
        finest = units[-1]
        cell = torch.arange(finest.count)
        levels = []  # scores of each level, a value per finest unit: [S, n, cells]
        for i, of in enumerate(vectors):
            scores = preset.group.of(preset.score.of(queries, of, layer.scale), layer.scale)
            levels.append(scores[..., cell >> (len(units) - 1 - i)])
        levels = torch.stack(levels)
        level = torch.zeros_like(levels[0], dtype=torch.int64)
        free = (finest.cost > 0)[:, None]
        for _ in range(len(units) - 1):
            now = levels.gather(0, level[None])[0]
            taken = covering(now.masked_fill(~free, -torch.inf), finest.cost[:, None], rows)
            level = (level + taken).clamp_max(len(units) - 1)
        now = levels.gather(0, level[None])[0]
        return preset.budget.choose(now, finest, rows)


def covering(weights: torch.Tensor, cost: torch.Tensor, rows: int) -> torch.Tensor:
    """bool: the best, with all that score the same as the last, until they cover `rows`."""
    order = weights.argsort(stable=True, dim=-1, descending=True)
    cost = cost.expand(weights.shape).gather(-1, order)
    needed = (cost.cumsum(-1) - cost < rows).sum(-1, keepdim=True)
    cut = weights.gather(-1, order.gather(-1, (needed - 1).clamp_min(0)))
    return weights >= cut
