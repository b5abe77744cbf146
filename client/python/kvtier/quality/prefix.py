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
QUERIES = 64  # of the context's last tokens, kept for presets that judge the context by them


@dataclass
class Prefix:
    ids: list[int]
    keys: torch.Tensor  # [L, H, C, d], after RoPE
    values: torch.Tensor
    queries: torch.Tensor  # [L, Hq, QUERIES, d]
    index: dict[Any, Any] = field(default_factory=dict)  # units and abstracts of the presets

    @property
    def length(self) -> int:
        return len(self.ids)


def read(judge: Judge, ids: list[int], progress: Callable[[int, int], None]) -> Prefix:
    """From the cache on disk, or computed. `progress(done, total)` in tokens."""
    digest = hashlib.blake2b(repr((judge.key, ids)).encode(), digest_size=12).hexdigest()
    name = f"prefix-{digest}"
    tensors = cache.get(name)
    if tensors is None:
        tensors = _compute(judge, ids, progress)
        cache.put(name, tensors)
    return Prefix(ids, tensors["keys"], tensors["values"], tensors["queries"])


def _compute(
    judge: Judge, ids: list[int], progress: Callable[[int, int], None]
) -> dict[str, torch.Tensor]:
    from transformers import DynamicCache

    attention.install(judge.model)
    rows = DynamicCache(config=judge.model.config)
    last: dict[int, torch.Tensor] = {}

    def seen(layer: int, queries: torch.Tensor) -> None:
        last[layer] = torch.cat([last[layer], queries], 1) if layer in last else queries
        last[layer] = last[layer][:, -QUERIES:].clone()

    with torch.inference_mode(), attention.seeing(judge.model, seen):
        for first in range(0, len(ids), PIECE):
            part = torch.tensor([ids[first : first + PIECE]])
            judge.model(input_ids=part, past_key_values=rows, use_cache=True, logits_to_keep=1)
            progress(first + part.shape[1], len(ids))
    return {
        "keys": torch.stack([layer.keys[0] for layer in rows.layers]),
        "values": torch.stack([layer.values[0] for layer in rows.layers]),
        "queries": torch.stack([last[i] for i in range(len(rows.layers))]),
    }
