"""Codebooks for the reference: trained on the calibration texts, never on the text that is judged,
over all positions that a run can reach; kept in the cache on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch

from . import cache, prefix
from .model import Judge
from .reference.codebook import Codebook, rope_pairs, spread, train_codebook, train_plain
from .reference.presets import BOOKS

KEYS = 8192  # per layer and head, all texts together
QUERIES = 1024


def train(
    judge: Judge,
    kind: str,
    texts: list[list[int]],
    positions: int,
    progress: Callable[[int, int], None],
) -> list[Codebook]:
    """Codebooks of every layer. `texts`: token ids of each calibration text."""
    book = BOOKS[kind]
    name = repr((judge.key, kind, book, texts, positions, KEYS, QUERIES))
    name = f"books-2-{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}"
    found = cache.get(name)
    if found is not None:
        layers = [{k: v[i] for k, v in found.items()} for i in range(judge.layers)]
        return [Codebook(bits=book["bits"], **of) for of in layers]
    read = [prefix.read(judge, ids, lambda done, total: None) for ids in texts]
    books = []
    for layer in range(judge.layers):
        books.append(_train_layer(judge, book, read, layer, positions))
        progress(layer + 1, judge.layers)
    of_layers = [one.tensors() for one in books]
    cache.put(name, {k: torch.stack([of[k] for of in of_layers]) for k in of_layers[0]})
    return books


def _train_layer(
    judge: Judge, book: dict[str, Any], read: list[prefix.Prefix], layer: int, positions: int
) -> Codebook:
    frequency, dim = judge.frequency(), judge.head_dim
    subspaces = max(1, dim // book["width"])
    keys, queries = [], []
    for i, text in enumerate(read):
        share = KEYS // len(read)
        at = torch.arange(text.length)
        keys.append(spread(text.keys[layer], at, positions, frequency, share, seed=i))
        of_heads = text.queries[layer].unflatten(0, (judge.kv_heads, -1))
        share = QUERIES // len(read)
        for group in of_heads.transpose(0, 1):  # one query head of every KV head
            at = text.query_positions
            queries.append(spread(group, at, positions, frequency, share, seed=i))
    if book["coordinates"] == "pairs":
        return train_plain(torch.cat(keys, 1), rope_pairs(dim, subspaces), book["bits"])
    return train_codebook(torch.cat(keys, 1), torch.cat(queries, 1), subspaces, book["bits"])
