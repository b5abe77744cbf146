"""The stored context: K and V of all its tokens, computed once with full attention and shared by
every preset, budget and question that goes on from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from . import cache
from .model import Judge
from .reference import attention

PIECE = 1024
QUERIES = 64  # of the last tokens of each piece, kept for those who judge keys by them


@dataclass
class Prefix:
    ids: list[int]
    keys: torch.Tensor  # [L, H, C, d], after RoPE
    values: torch.Tensor
    queries: torch.Tensor  # [L, Hq, m, d] of the tokens at query_positions, ascending
    query_positions: torch.Tensor  # int64 [m]
    index: dict[Any, Any] = field(default_factory=dict)  # units and abstracts of the presets

    @property
    def length(self) -> int:
        return len(self.ids)


def read(judge: Judge, ids: list[int], progress: Callable[[int, int], None]) -> Prefix:
    """From the cache on disk, or computed. `progress(done, total)` in tokens."""
    digest = hashlib.blake2b(repr((judge.key, ids)).encode(), digest_size=12).hexdigest()
    name = f"prefix-2-{digest}"
    tensors = cache.get(name)
    if tensors is None:
        tensors = _compute(judge, ids, progress)
        cache.put(name, tensors)
    return Prefix(ids, **tensors)


def _compute(
    judge: Judge, ids: list[int], progress: Callable[[int, int], None]
) -> dict[str, torch.Tensor]:
    from transformers import DynamicCache

    rows = DynamicCache(config=judge.model.config)
    last: dict[int, list[torch.Tensor]] = {}

    def seen(layer: int, queries: torch.Tensor) -> None:
        last.setdefault(layer, []).append(queries[:, -QUERIES:].clone())

    positions: list[int] = []
    model = judge.model
    with torch.inference_mode(), attention.installed(model), attention.seeing(model, seen):
        for first in range(0, len(ids), PIECE):
            part = torch.tensor([ids[first : first + PIECE]])
            judge.model(input_ids=part, past_key_values=rows, use_cache=True, logits_to_keep=1)
            end = first + part.shape[1]
            positions += range(max(first, end - QUERIES), end)
            progress(end, len(ids))
    return {
        "keys": torch.stack([layer.keys[0] for layer in rows.layers]),
        "values": torch.stack([layer.values[0] for layer in rows.layers]),
        "queries": torch.stack([torch.cat(last[i], 1) for i in range(len(rows.layers))]),
        "query_positions": torch.tensor(positions),
    }
