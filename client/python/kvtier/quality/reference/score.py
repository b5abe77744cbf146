"""Scores: how well a unit may serve a query, in units of q . k (unscaled).
`of(queries [H, g, n, d], vectors)`: [H, g, n, U]."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .abstract import Vectors


def product(queries: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """[H, g, n, d] x [H, U, d] -> [H, g, n, U]."""
    heads, group, steps, dim = queries.shape
    flat = queries.reshape(heads, group * steps, dim) @ vectors.transpose(1, 2)
    return flat.view(heads, group, steps, -1)


@dataclass(frozen=True)
class Dot:
    """q . mean; plus the log of the count where the abstract has one (scaled like the product)."""

    def of(self, queries: torch.Tensor, vectors: Vectors, scale: float) -> torch.Tensor:
        scores = product(queries, vectors["mean"])
        if "log_count" in vectors:
            scores += vectors["log_count"][:, None, None] / scale
        return scores


@dataclass(frozen=True)
class UpperBound:
    """What no key of the unit exceeds. Box: sum over dimensions of max(q low, q high) (Quest,
    section 3.3; LeoAM's ub). Ball: q . mean + |q| radius (ArkVale)."""

    def of(self, queries: torch.Tensor, vectors: Vectors, scale: float) -> torch.Tensor:
        if "radius" in vectors:
            radius = vectors["radius"][:, None, None] * queries.norm(dim=-1, keepdim=True)
            return product(queries, vectors["mean"]) + radius
        high = product(queries.clamp_min(0), vectors["high"])
        return high.add_(product(queries.clamp_max(0), vectors["low"]))
