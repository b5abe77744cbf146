"""Codebooks for the reference: trained on the calibration texts, never on the text that is judged,
over all positions that a run can reach; kept in the cache on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch

from . import cache, prefix
from .model import Judge
from .reference.codebook import Codebook, in_order, rope_pairs, spread, train_codebook
from .reference.presets import BOOKS

KEYS = 16384  # per layer and head, all texts together


def dims_of(kind: str, dim: int) -> torch.Tensor:
    book = BOOKS[kind]
    count = max(1, dim // book["width"])
    return rope_pairs(dim, count) if book["pairs"] else in_order(dim, count)


def train(
    judge: Judge,
    kind: str,
    texts: list[list[int]],
    positions: int,
    progress: Callable[[int, int], None],
) -> list[Codebook]:
    """Codebooks of every layer. `texts`: token ids of each calibration text."""
    name = repr((judge.key, kind, BOOKS[kind], texts, positions, KEYS))
    name = f"books-{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}"
    dims, bits = dims_of(kind, judge.head_dim), BOOKS[kind]["bits"]
    found = cache.get(name)
    if found is not None:
        return [Codebook(c, dims, bits) for c in found["centroids"]]
    frequency = judge.frequency()
    rows = [prefix.read(judge, ids, lambda done, total: None).keys for ids in texts]
    books = []
    for layer in range(judge.layers):
        share = KEYS // len(rows)
        keys = [spread(k[layer], positions, frequency, share, seed=i) for i, k in enumerate(rows)]
        books.append(train_codebook(torch.cat(keys, 1), dims, bits))
        progress(layer + 1, judge.layers)
    cache.put(name, {"centroids": torch.stack([b.centroids for b in books])})
    return books
