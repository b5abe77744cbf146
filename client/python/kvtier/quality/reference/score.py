"""Scores: how well a unit may serve a query, in units of q . k (unscaled).
`of(queries [H, g, n, d], vectors)`: [H, g, n, U]."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .abstract import Vectors
from .codebook import parts_of


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
class Tables:
    """q . key by look-up: the products with the entries that the key's codes name, summed over the
    sub-spaces, which have consecutive dimensions (PQCache's code). Rows with the same codes score
    the same to the bit."""

    def of(self, queries: torch.Tensor, vectors: Vectors, scale: float) -> torch.Tensor:
        heads, group, steps, dim = queries.shape
        entries, codes = vectors["entries"], vectors["codes"]
        parts = queries.reshape(heads, group * steps, entries.shape[1], -1).transpose(1, 2)
        tables = parts @ entries.transpose(2, 3)  # [H, M, q, entries]
        total = torch.zeros(heads, group * steps, codes.shape[1])
        for m in range(entries.shape[1]):
            total += tables[:, m].gather(2, codes[:, None, :, m].expand(-1, group * steps, -1))
        return total.view(heads, group, steps, -1)


@dataclass(frozen=True)
class OfRepresentatives:
    """The mean of the products with a unit's representatives (InfLLM, arXiv 2402.04617: their sum;
    its code keeps the mean of the keys, which gives the same); `largest`: the largest (ours)."""

    largest: bool = False

    def of(self, queries: torch.Tensor, vectors: Vectors, scale: float) -> torch.Tensor:
        keys = vectors["keys"]
        products = product(queries, keys.flatten(1, 2)).unflatten(-1, keys.shape[1:3])
        return products.amax(-1) if self.largest else products.mean(-1)


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

    def least(self, queries: torch.Tensor, vectors: Vectors, whole: torch.Tensor) -> torch.Tensor:
        """What the logarithm of the mean of exp(q . k) over a unit's rows is no less than, and of a
        ball's `whole` units (bool [H or 1, U]) by Jensen's inequality q . mean, less what 16 bits
        may have made of it."""
        below = -self.of(-queries, vectors, 1.0)
        if "radius" not in vectors:
            return below
        mean = vectors["mean"]
        jensen = product(queries, mean) - product(queries.abs(), mean.abs()) * 2**-11
        return torch.where(whole[:, None, None], torch.maximum(jensen, below), below)


@dataclass(frozen=True)
class ByteTables:
    """As Dot with codes, but the tables of products are rounded to bytes, one step for all
    sub-spaces of a query, as a look-up by byte shuffles has them (Andre et al., Quicker ADC). The
    step is rounded up to 10 significant bits, so that a step times a sum is exact."""

    def of(self, queries: torch.Tensor, vectors: Vectors, scale: float) -> torch.Tensor:
        heads, group, steps, dim = queries.shape
        moved = queries.reshape(heads, group * steps, dim) @ vectors["back"].transpose(1, 2)
        parts = parts_of(moved, vectors["dims"])  # [H, M, q, s]
        tables = parts @ vectors["centroids"].transpose(2, 3)  # [H, M, q, K]
        low = tables.amin(-1, keepdim=True)
        widest = (tables.amax(-1, keepdim=True) - low).amax(1, keepdim=True)
        dropped = (1 << 14) - 1
        step = (((widest / 255).clamp_min(1e-30).view(torch.int32) + dropped) & ~dropped).view(
            torch.float32
        )
        rounded = ((tables - low) / step).round()
        codes = vectors["codes"].long()
        total = torch.zeros(heads, group * steps, codes.shape[1])
        for m in range(codes.shape[2]):
            index = codes[:, None, :, m].expand(-1, group * steps, -1)
            total += rounded[:, m].gather(2, index)
        scores = total * step[:, 0] + low.sum(1)
        return scores.view(heads, group, steps, -1)
