"""Budgets: how many rows the best units may have, beside the kept ones.
`choose(weights [S, n, U], units, rows)`: bool [S, n, C]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .layer import Layer
from .partition import Units


@dataclass(frozen=True)
class Tokens:
    """As many rows as the user says. Whole units while they fit, the first that does not ends it;
    `cut`: of that one the first rows that fit (ClusterKV; LouisKV does not say). `percent`: of what
    the user says, in layers 0, 1 and so on, the last number in all others (PyramidKV, arXiv
    2406.02069, has numbers that fall by the same amount from layer to layer)."""

    cut: bool = False
    percent: tuple[int, ...] = (100,)

    def of_layer(self, given: int, index: int) -> int:
        return given * self.percent[min(index, len(self.percent) - 1)] // 100

    def rows(self, given: int, layer: Layer) -> int:
        return self.of_layer(given, layer.index)

    def choose(self, weights: torch.Tensor, units: Units, rows: int) -> torch.Tensor:
        cost = fit(units.cost, weights)
        free = cost > 0
        weights = weights.masked_fill(~free, -torch.inf)
        if units.of_row is None:
            return best_rows(weights, free, rows)
        order = weights.argsort(stable=True, dim=-1, descending=True)
        cost = cost.expand(weights.shape).gather(-1, order)
        until = cost.cumsum(-1)
        if self.cut:
            return self._cut(order, until - cost, units, rows)
        taken = torch.zeros_like(weights, dtype=torch.bool).scatter_(-1, order, until <= rows)
        return of_rows(taken & free, units)

    @staticmethod
    def _cut(order: torch.Tensor, before: torch.Tensor, units: Units, rows: Any) -> torch.Tensor:
        start = torch.zeros_like(before).scatter_(-1, order, before)  # rows of better units
        room = of_rows(rows - start, units)
        return room > fit(place_in_unit(units), room)


@dataclass(frozen=True)
class Share(Tokens):
    """A share of the stored rows where the user gives no number: `early` in layers 0 and 1,
    `other` elsewhere (LeoAM's code: 0.5 and 0.2)."""

    early: float = 0.5
    other: float = 0.2

    def rows(self, given: int, layer: Layer) -> int:
        if given:
            return super().rows(given, layer)
        return int((self.early if layer.index < 2 else self.other) * layer.stored)


@dataclass(frozen=True)
class TopP(Tokens):
    """The fewest best units that hold a share of `p` of the estimated mass of all units that are
    not kept; never more than the rows given. Needs weights that are probabilities."""

    p: float = 0.95

    def choose(self, weights: torch.Tensor, units: Units, rows: int) -> torch.Tensor:
        chosen = super().choose(weights, units, rows)
        weights = weights.masked_fill(fit(units.cost, weights) == 0, 0)
        order = weights.argsort(stable=True, dim=-1, descending=True)
        mass = weights.gather(-1, order)
        needed = mass.cumsum(-1) - mass < self.p * mass.sum(-1, keepdim=True)
        enough = torch.zeros_like(weights, dtype=torch.bool).scatter_(-1, order, needed)
        return chosen & of_rows(enough, units)


@dataclass(frozen=True)
class Entropy(Tokens):
    """As many rows as a uniform distribution would have whose entropy is that of the weights, a
    unit's being spread evenly over its rows: from `floor` of the rows given up to all of them.
    Whole units until there are so many, or `cut`. Ours; the idea of more rows for flat heads is
    ActQKV's (arXiv 2502.13542). Needs weights that are probabilities."""

    floor: float = 0.25

    def choose(self, weights: torch.Tensor, units: Units, rows: int) -> torch.Tensor:
        cost = fit(units.cost, weights)
        mass = weights.double().masked_fill(cost == 0, 0)
        mass = mass / mass.sum(-1, keepdim=True)
        even = torch.special.xlogy(-mass, mass / cost.clamp_min(1)).sum(-1, keepdim=True).exp()
        wanted = even.round().long().clamp(round(self.floor * rows), rows)  # [S, n, 1]
        free = cost > 0
        order = mass.masked_fill(~free, -1).argsort(stable=True, dim=-1, descending=True)
        cost = cost.expand(weights.shape).gather(-1, order)
        until = cost.cumsum(-1)
        if self.cut and units.of_row is not None:
            return self._cut(order, until - cost, units, wanted)
        enough = (until <= rows) & (until - cost < wanted)
        taken = torch.zeros_like(weights, dtype=torch.bool).scatter_(-1, order, enough)
        return of_rows(taken & free, units)


@dataclass(frozen=True)
class Certified(Tokens):
    """The fewest best units after which what is left out has at most 1 - `share` of the mass of
    every query head of the group for certain; never more than the rows given (ours). Whole units,
    or `cut` where the rows end it."""

    share: float = 0.9

    def certify(
        self,
        weights: torch.Tensor,
        units: Units,
        rows: int,
        bounds: tuple[torch.Tensor, torch.Tensor],
        held: torch.Tensor,
    ) -> torch.Tensor:
        """weights [H, n, U]; bounds [H, g, n, U] of the logits of a unit's rows, from above each
        of them, from below their mean mass; held [H, g, n]: logarithm of the exact mass of what is
        attended to anyway."""
        cost = fit(units.cost, weights).expand(weights.shape)
        order = weights.masked_fill(cost == 0, -torch.inf)
        order = order.argsort(stable=True, dim=-1, descending=True)
        size = cost.gather(-1, order)
        index = order[:, None].expand_as(bounds[0])
        above, below = ((x.gather(-1, index) + size[:, None].log()).double() for x in bounds)
        left = above.flip(-1).logcumsumexp(-1).flip(-1)  # before unit j is taken
        taken = torch.cat([held[..., None].double(), below[..., :-1]], -1).logcumsumexp(-1)
        needed = (torch.sigmoid(left - taken) > 1 - self.share).any(1)  # [H, n, U]
        until = size.cumsum(-1)
        if self.cut:
            wanted = (size * needed).sum(-1, keepdim=True).clamp_max(rows)
            return self._cut(order, until - size, units, wanted)
        enough = needed & (until <= rows)
        taken_units = torch.zeros_like(weights, dtype=torch.bool).scatter_(-1, order, enough)
        return of_rows(taken_units & (cost > 0), units)


def best_rows(weights: torch.Tensor, free: torch.Tensor, rows: int) -> torch.Tensor:
    """The `rows` best single rows, those without weight (kept ones) left out. Ties go to the older:
    rows with the same codes weigh the same."""
    count = min(rows, weights.shape[-1])
    if count == 0:
        return torch.zeros_like(weights, dtype=torch.bool)
    last = weights.topk(count, sorted=False).values.amin(-1, keepdim=True)
    better, as_good = weights > last, weights == last
    room = count - better.sum(-1, keepdim=True)
    return (better | (as_good & (as_good.cumsum(-1) <= room))) & free


def of_rows(x: torch.Tensor, units: Units) -> torch.Tensor:
    """A value per unit [S, n, U] as a value per row [S, n, C]."""
    if units.of_row is None:
        return x
    return x.gather(-1, fit(units.of_row, x).expand(x.shape[0], x.shape[1], -1))


def fit(of_heads: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """[H or 1, ...] so that it goes with x [S, n, ...]."""
    if len(of_heads) not in (1, len(x)):
        of_heads = of_heads.repeat_interleave(len(x) // len(of_heads), 0)
    return of_heads[:, None]


def place_in_unit(units: Units) -> torch.Tensor:
    """How many rows of its unit that are not kept lie before a row: [H or 1, C]."""
    heads = len(units.cost)
    of_row = units.of_row.expand(heads, -1)
    order = of_row.argsort(stable=True, dim=-1)
    free = (~units.kept).long().expand(heads, -1).gather(-1, order)
    first = units.cost.cumsum(-1) - units.cost  # free rows of the units before
    place = free.cumsum(-1) - free - first.gather(-1, of_row.gather(-1, order))
    return torch.zeros_like(place).scatter_(-1, order, place)
