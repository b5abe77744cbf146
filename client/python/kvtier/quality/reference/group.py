"""Groups: one weight per unit for the query heads that choose together.
`of(scores [H, g, n, U], scale)`: [S, n, U], S selections per layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MeanSoftmax:
    """Softmax over the units, mean over the query heads of a KV head (LouisKV, group-consistent
    selection; FreeKV)."""

    def of(self, scores: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.softmax(scores * scale, -1).mean(1)


@dataclass(frozen=True)
class MaxSoftmax:
    """Softmax over the units, the largest of the query heads of a KV head (ShadowKV)."""

    def of(self, scores: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.softmax(scores * scale, -1).amax(1)


@dataclass(frozen=True)
class MaxScore:
    """The largest raw score of the query heads of a KV head."""

    def of(self, scores: torch.Tensor, scale: float) -> torch.Tensor:
        return scores.amax(1)


@dataclass(frozen=True)
class PerQueryHead:
    """Each query head chooses for itself (Quest's and SentenceKV's code, on repeated KV heads)."""

    def of(self, scores: torch.Tensor, scale: float) -> torch.Tensor:
        return scores.flatten(0, 1)


@dataclass(frozen=True)
class BestPlace:
    """Minus the best place that a unit has in the orders of the query heads, so that the best units
    of each are taken in turn, and all query heads attend to them. The choice per query head is
    Quest's and SentenceKV's code's; one choice of it for the KV head is ours."""

    of_free = True  # kept units have no place

    def of(self, scores: torch.Tensor, scale: float) -> torch.Tensor:
        order = scores.argsort(stable=True, dim=-1, descending=True)
        return -order.argsort(-1).amin(1).float()


@dataclass(frozen=True)
class MeanScore:
    """Mean of the raw scores of the query heads of a KV head."""

    def of(self, scores: torch.Tensor, scale: float) -> torch.Tensor:
        return scores.mean(1)


@dataclass(frozen=True)
class LayerSum:
    """One selection for all heads of the layer: the sum of their raw scores (LeoAM's code)."""

    def of(self, scores: torch.Tensor, scale: float) -> torch.Tensor:
        return scores.sum((0, 1))[None]
