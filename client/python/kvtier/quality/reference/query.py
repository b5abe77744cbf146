"""Queries: what is scored against the abstracts. `of(layer)`: [H, g, n, d]; `ahead`: needs the
guess of a layer's queries that attention.py makes one layer before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .group import BestPlace, MaxScore, MaxSoftmax
from .layer import Layer


@dataclass(frozen=True)
class Current:
    """The query of the step."""

    ahead: bool = False

    def of(self, layer: Layer) -> torch.Tensor:
        return layer.queries


@dataclass(frozen=True)
class SentenceMean:
    """Mean of the queries since the last delimiter, this step's included (SentenceKV, section 3.3
    and its figure; attention itself takes the current query)."""

    ahead: bool = False

    def of(self, layer: Layer) -> torch.Tensor:
        steps = layer.steps
        first = layer.keys.shape[1] - steps
        total = layer.queries.cumsum(2)
        begin = torch.zeros(steps, dtype=torch.int64)
        for i in range(1, steps):
            begin[i] = i if bool(layer.delimiter[first + i - 1]) else begin[i - 1]
        before = torch.where(
            (begin > 0)[None, None, :, None],
            total[:, :, (begin - 1).clamp_min(0)],
            torch.zeros(()),
        )
        length = torch.arange(steps) - begin + 1
        return (total - before) / length[None, None, :, None]


@dataclass(frozen=True)
class PreviousLayer:
    """The query of the layer before: known one layer ahead. The first layer has its own only."""

    ahead: bool = False

    def of(self, layer: Layer) -> torch.Tensor:
        return layer.queries if layer.previous_queries is None else layer.previous_queries


@dataclass(frozen=True)
class Block:
    """The queries of one call choose once together: by the mean of their weights, where a group
    takes the largest score by the largest. At most engine.BLOCK of them."""

    ahead: bool = False

    def of(self, layer: Layer) -> torch.Tensor:
        return layer.queries

    def join(self, weights: torch.Tensor, group: Any) -> torch.Tensor:
        """[S, n, U], the same for all n."""
        largest = isinstance(group, MaxScore | MaxSoftmax | BestPlace)
        joined = weights.amax(1, keepdim=True) if largest else weights.mean(1, keepdim=True)
        return joined.expand_as(weights)


@dataclass(frozen=True)
class Ahead:
    """This layer's query as guessed one layer ahead: the input of the layer before, through this
    layer's norm and projection (InfiniGen, arXiv 2406.19707). The first layer has its own only."""

    ahead: bool = True

    def of(self, layer: Layer) -> torch.Tensor:
        return layer.queries if layer.ahead_queries is None else layer.ahead_queries
