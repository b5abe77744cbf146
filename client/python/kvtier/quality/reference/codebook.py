"""Codebooks of key codes: product quantisation (Jegou et al. 2011), either of the keys as they are
or of the keys in coordinates that suit the queries.

The second: errors count as the queries see them (metric: the second moment of the queries), axes
are the principal ones of the keys in that metric, dealt out to the sub-spaces so that the products
of their variances are alike (Ge et al., Optimized Product Quantization, 2013, eigenvalue
allocation).

A codebook must have seen the positions, not the text: a key turns with its position, so books
trained on a text's first 2,000 tokens fail on its later ones, while books of another text over all
positions serve. `spread` turns keys of a short text to all positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

METRIC_FLOOR = 1e-3  # of the mean eigenvalue: no direction counts for nothing


@dataclass
class Codebook:
    """Of one layer: H heads, M sub-spaces of s dimensions, 2^bits centroids each. Codes are of
    y = (key - mean) move; a code stands for the key y back + mean."""

    centroids: torch.Tensor  # [H, M, 2^bits, s]
    dims: torch.Tensor  # int64 [H, M, s]: the dimensions of y that a sub-space has
    bits: int
    mean: torch.Tensor  # [H, 1, d]
    move: torch.Tensor  # [H, d, d]
    back: torch.Tensor  # [H, d, d]

    def encode(self, keys: torch.Tensor) -> torch.Tensor:
        """[H, n, d] -> int64 [H, n, M]."""
        heads, subspaces, _, width = self.centroids.shape
        moved = (keys - self.mean) @ self.move
        x = parts_of(moved, self.dims)
        nearest = nearest_of(x.flatten(0, 1), self.centroids.flatten(0, 1))
        return nearest.view(heads, subspaces, -1).transpose(1, 2)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [H, n, M] -> [H, n, d]."""
        heads, subspaces, size, width = self.centroids.shape
        flat = self.centroids.reshape(heads, subspaces * size, width)
        index = (codes + torch.arange(subspaces) * size).reshape(heads, -1, 1)
        parts = flat.gather(1, index.expand(-1, -1, width))
        parts = parts.view(heads, codes.shape[1], subspaces * width)
        moved = torch.empty_like(parts)
        moved.scatter_(2, self.dims.view(heads, 1, -1).expand_as(parts), parts)
        return moved @ self.back + self.mean

    def decode_of(self, keys: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(keys))

    @property
    def bytes_per_row(self) -> float:
        return self.centroids.shape[1] * self.bits / 8

    def tensors(self) -> dict[str, torch.Tensor]:
        names = ("centroids", "dims", "mean", "move", "back")
        return {name: getattr(self, name) for name in names}


def parts_of(x: torch.Tensor, dims: torch.Tensor) -> torch.Tensor:
    """[H, n, d], [H, M, s] -> [H, M, n, s]."""
    heads, subspaces, width = dims.shape
    index = dims.view(heads, 1, -1).expand(-1, x.shape[1], -1)
    return x.gather(2, index).view(heads, -1, subspaces, width).transpose(1, 2)


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


def train_plain(keys: torch.Tensor, dims: torch.Tensor, bits: int, seed: int = 0) -> Codebook:
    """Of keys [H, n, d] as they are, in sub-spaces dims [M, s]."""
    heads, _, dim = keys.shape
    same = torch.eye(dim).expand(heads, -1, -1)
    dims = dims.expand(heads, -1, -1)
    centroids = k_means(parts_of(keys, dims), bits, seed)
    return Codebook(centroids, dims, bits, torch.zeros(heads, 1, dim), same, same)


def train_codebook(
    keys: torch.Tensor, queries: torch.Tensor, subspaces: int, bits: int = 4, seed: int = 0
) -> Codebook:
    """Of keys [H, n, d] in the coordinates that suit queries [H, m, d]."""
    mean = keys.mean(1, keepdim=True)
    x = (keys - mean).double()
    root, inverse = metric_of(queries.double())
    variance, axes = torch.linalg.eigh(root @ (x.transpose(1, 2) @ x / x.shape[1]) @ root)
    move, back = root @ axes, (inverse @ axes).transpose(1, 2)
    dims = torch.stack([deal_out(of_head, subspaces) for of_head in variance])
    moved = (x @ move).float()
    centroids = k_means(parts_of(moved, dims), bits, seed)
    return Codebook(centroids, dims, bits, mean, move.float(), back.float())


def metric_of(queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The symmetric root of the queries' second moment, and its inverse: [H, d, d] each."""
    values, vectors = torch.linalg.eigh(queries.transpose(1, 2) @ queries / queries.shape[1])
    values = values.clamp_min(0)
    values = (values + METRIC_FLOOR * values.mean(-1, keepdim=True)).sqrt()
    turned = vectors.transpose(1, 2)
    return vectors * values[:, None] @ turned, vectors / values[:, None] @ turned


def deal_out(variance: torch.Tensor, subspaces: int) -> torch.Tensor:
    """int64 [M, s]: axes by falling variance, each to the sub-space with room whose product of
    variances is the smallest so far."""
    room = len(variance) // subspaces
    groups: list[list[int]] = [[] for _ in range(subspaces)]
    load = [0.0] * subspaces
    for axis in variance.argsort(descending=True, stable=True).tolist():
        open_ones = [g for g in range(subspaces) if len(groups[g]) < room]
        best = min(open_ones, key=lambda g: (load[g], len(groups[g])))
        groups[best].append(axis)
        load[best] += float((variance[axis].clamp_min(1e-9) / 1e-9).log())
    return torch.tensor(groups)


def k_means(x: torch.Tensor, bits: int, seed: int, iterations: int = 12) -> torch.Tensor:
    """[H, M, n, s] -> centroids [H, M, 2^bits, s]. k-means++ to begin with, then Lloyd; a centroid
    that loses its points stays where it is."""
    shape, size = x.shape, 1 << bits
    x = x.flatten(0, 1).contiguous()
    count = x.shape[1]
    random = torch.Generator().manual_seed(seed)
    centroids = torch.empty(len(x), size, x.shape[2])
    nearest = torch.full(x.shape[:2], torch.inf)
    chosen = torch.randint(count, (len(x),), generator=random)
    for j in range(size):
        centroids[:, j] = x[torch.arange(len(x)), chosen]
        nearest = torch.minimum(nearest, (x - centroids[:, j, None]).square().sum(-1))
        chosen = torch.multinomial(nearest.clamp_min(1e-30), 1, generator=random)[:, 0]
    for _ in range(iterations):
        of_point = nearest_of(x, centroids)
        weight = torch.zeros(len(x), size).scatter_add_(1, of_point, torch.ones(len(x), count))
        total = torch.zeros_like(centroids).scatter_add_(
            1, of_point[:, :, None].expand_as(x), x
        )
        alive = (weight > 0)[:, :, None]
        centroids = torch.where(alive, total / weight.clamp_min(1)[:, :, None], centroids)
    return centroids.view(*shape[:2], size, shape[3])


def turn(keys: torch.Tensor, by: torch.Tensor, inverse_frequency: torch.Tensor) -> torch.Tensor:
    """Keys after RoPE as they would be `by` positions later: [H, n, d], [n]. Dimensions beyond
    twice the number of frequencies are not turned."""
    half = len(inverse_frequency)
    angle = by[:, None].double() * inverse_frequency.double()
    cos, sin = angle.cos().to(keys.dtype), angle.sin().to(keys.dtype)
    a, b, rest = keys[..., :half], keys[..., half : 2 * half], keys[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def spread(
    rows: torch.Tensor,
    at: torch.Tensor,
    positions: int,
    inverse_frequency: torch.Tensor,
    most: int,
    seed: int = 0,
) -> torch.Tensor:
    """`most` rows of [H, n, d], keys or queries of positions at [n], turned so that they lie evenly
    over `positions` positions. The first 16 positions are left out: they are sinks, and like no
    others."""
    usable = (at >= min(16, int(at.max()))).nonzero()[:, 0]
    random = torch.Generator().manual_seed(seed)
    row = usable[torch.randint(len(usable), (most,), generator=random)]
    target = torch.arange(most) * positions // most
    return turn(rows[:, row], target - at[row], inverse_frequency)
