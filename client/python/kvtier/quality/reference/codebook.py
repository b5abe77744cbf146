"""Codebooks of key codes: product quantisation with the halves of each RoPE pair in one sub-space.

A codebook must have seen the positions, not the text: a key turns with its position, so books
trained on a text's first 2,000 tokens fail on its later ones, while books of another text over all
positions serve. `spread` turns keys of a short text to all positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Codebook:
    """Of one layer: H heads, M sub-spaces of s dimensions, 2^bits centroids each."""

    centroids: torch.Tensor  # [H, M, 2^bits, s]
    dims: torch.Tensor  # int64 [M, s]: the dimensions of a sub-space
    bits: int

    def encode(self, keys: torch.Tensor) -> torch.Tensor:
        """[H, n, d] -> int64 [H, n, M]."""
        heads, subspaces, _, width = self.centroids.shape
        x = keys[:, :, self.dims.flatten()].view(heads, -1, subspaces, width).transpose(1, 2)
        nearest = nearest_of(x.flatten(0, 1), self.centroids.flatten(0, 1))
        return nearest.view(heads, subspaces, -1).transpose(1, 2)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [H, n, M] -> [H, n, d]."""
        heads, subspaces, size, width = self.centroids.shape
        flat = self.centroids.reshape(heads, subspaces * size, width)
        index = (codes + torch.arange(subspaces) * size).reshape(heads, -1, 1).expand(-1, -1, width)
        parts = flat.gather(1, index).view(heads, codes.shape[1], subspaces * width)
        out = torch.empty_like(parts)
        out[:, :, self.dims.flatten()] = parts
        return out

    def decode_of(self, keys: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(keys))

    @property
    def bytes_per_row(self) -> float:
        return self.centroids.shape[1] * self.bits / 8


def rope_pairs(dim: int, subspaces: int) -> torch.Tensor:
    """[M, s]: dimensions i and i + dim/2, which RoPE turns together, in one sub-space; neighbours
    in frequency with them."""
    width = dim // subspaces
    if dim % subspaces or width % 2:
        raise ValueError(f"{subspaces} sub-spaces of {dim} dimensions do not keep RoPE's pairs")
    first = torch.arange(dim // 2).view(subspaces, width // 2)
    return torch.cat([first, first + dim // 2], 1)


def in_order(dim: int, subspaces: int) -> torch.Tensor:
    """[M, s]: consecutive dimensions (PQCache)."""
    return torch.arange(dim).view(subspaces, dim // subspaces)


def nearest_of(x: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """[B, n, s], [B, K, s] -> int64 [B, n], by Euclidean distance."""
    half = centroids.square().sum(-1)[:, None] / 2
    turned = centroids.transpose(1, 2).contiguous()
    rows = max(32, (1 << 19) // (len(x) * centroids.shape[1]))  # what stays in a CPU's cache
    parts = [torch.baddbmm(half, part, turned, alpha=-1).argmin(-1) for part in x.split(rows, 1)]
    return torch.cat(parts, 1)


def train_codebook(
    keys: torch.Tensor, dims: torch.Tensor, bits: int = 4, iterations: int = 12, seed: int = 0
) -> Codebook:
    """k-means in each sub-space over keys [H, n, d] (Lloyd; first centroids are random keys; a
    centroid that loses its keys takes a random one)."""
    heads, count, _ = keys.shape
    subspaces, width = dims.shape
    x = keys[:, :, dims.flatten()].view(heads, count, subspaces, width).transpose(1, 2)
    x = x.flatten(0, 1).contiguous()  # [H M, n, s]
    random = torch.Generator().manual_seed(seed)
    size = 1 << bits
    centroids = x[:, torch.randperm(count, generator=random)[:size]].clone()
    for _ in range(iterations):
        nearest = nearest_of(x, centroids)
        weight = torch.zeros(len(x), size).scatter_add_(1, nearest, torch.ones(len(x), count))
        total = torch.zeros(len(x), size, width).scatter_add_(
            1, nearest[:, :, None].expand_as(x), x
        )
        other = x[:, torch.randint(count, (size,), generator=random)]
        alive = (weight > 0)[:, :, None]
        centroids = torch.where(alive, total / weight.clamp_min(1)[:, :, None], other)
    return Codebook(centroids.view(heads, subspaces, size, width), dims, bits)


def turn(keys: torch.Tensor, by: torch.Tensor, inverse_frequency: torch.Tensor) -> torch.Tensor:
    """Keys after RoPE as they would be `by` positions later: [H, n, d], [n]. Dimensions beyond
    twice the number of frequencies are not turned."""
    half = len(inverse_frequency)
    angle = by[:, None].float() * inverse_frequency
    cos, sin = angle.cos(), angle.sin()
    a, b, rest = keys[..., :half], keys[..., half : 2 * half], keys[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def spread(
    keys: torch.Tensor, positions: int, inverse_frequency: torch.Tensor, most: int, seed: int = 0
) -> torch.Tensor:
    """`most` keys of [H, n, d] (positions 0 to n - 1), turned so that they lie evenly over
    `positions` positions. The first 16 rows are left out: they are sinks, and like no others."""
    skip = min(16, keys.shape[1] - 1)
    random = torch.Generator().manual_seed(seed)
    row = torch.randint(skip, keys.shape[1], (most,), generator=random)
    target = torch.arange(most) * positions // most
    return turn(keys[:, row], target - row, inverse_frequency)
