"""A sequence and a view in plain memory: the smallest thing that behaves as kvtier's must.

The oracle of the adapter's tests. Same methods as kvtier.Sequence and kvtier.View, everything in
torch tensors of float32, every attention exact. No daemon, no limits, no durability.
"""

from __future__ import annotations

import math

import numpy as np
import torch


class ReferenceSequence:
    def __init__(self, layers: int, kv_heads: int, dim: int, dtype: torch.dtype = torch.float32):
        self.layer_count, self.kv_heads, self.dim, self.dtype = layers, kv_heads, dim, dtype
        self.ids: list[int] = []
        self._piece: list[int] = []
        self._written = [0] * layers
        empty = torch.empty(kv_heads, 0, dim, dtype=dtype)
        self._k = [empty.clone() for _ in range(layers)]
        self._v = [empty.clone() for _ in range(layers)]

    @property
    def length(self) -> int:
        return len(self.ids)

    def append(self, ids, **_) -> None:
        self.finish_piece()
        self._piece = [int(i) for i in ids]
        self._written = [0] * self.layer_count

    def write(self, layer: int, first: int, k, v) -> None:
        assert first == self._written[layer], "the reference takes rows in order"
        self._k[layer] = torch.cat([self._k[layer], torch.as_tensor(k).to(self.dtype)], dim=1)
        self._v[layer] = torch.cat([self._v[layer], torch.as_tensor(v).to(self.dtype)], dim=1)
        self._written[layer] += k.shape[1]

    def finish_piece(self) -> None:
        if self._piece:
            assert all(n == len(self._piece) for n in self._written), "a layer is not complete"
            self.ids += self._piece
            self._piece = []

    def abort_piece(self) -> None:
        self._piece = []
        self.truncate(len(self.ids))

    def truncate(self, tokens: int) -> None:
        self.ids = self.ids[:tokens]
        self._k = [k[:, :tokens] for k in self._k]
        self._v = [v[:, :tokens] for v in self._v]

    def commit(self) -> None:
        self.finish_piece()

    def observe_queries(self, layer: int, q) -> None:
        assert q.shape[2] == self.dim and q.is_contiguous()  # nothing here is calibrated

    def read(self, layer: int, first: int, count: int, k=None, v=None):
        keys = self._k[layer][:, first : first + count]
        values = self._v[layer][:, first : first + count]
        assert keys.shape[1] == count, "rows that are not stored"
        if k is not None:
            k.copy_(keys)
            v.copy_(values)
            return k, v
        return keys.numpy().copy(), values.numpy().copy()

    def fork(self, tokens: int | None = None, **_) -> "ReferenceSequence":
        other = ReferenceSequence(self.layer_count, self.kv_heads, self.dim, self.dtype)
        n = self.length if tokens is None else tokens
        other.ids = self.ids[:n]
        other._k = [k[:, :n].clone() for k in self._k]
        other._v = [v[:, :n].clone() for v in self._v]
        return other

    def view(self, **_) -> "ReferenceView":
        return ReferenceView(self)


class ReferenceView:
    looks_ahead = False

    def __init__(self, sequence: ReferenceSequence):
        self.sequence = sequence

    def attend(self, layer: int, q, scale: float | None = None, out=None, lse=None):
        """q: [query_heads, dim] or [queries, query_heads, dim], the newest tokens; exact and
        causal."""
        q = torch.as_tensor(q).float()
        single = q.ndim == 2
        q = q[None] if single else q
        k, v = self.sequence._k[layer].float(), self.sequence._v[layer].float()
        queries, heads, dim = q.shape
        group = heads // k.shape[0]
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        scores = torch.einsum("qhd,htd->qht", q, k) * (
            scale if scale is not None else 1 / math.sqrt(dim)
        )
        total = k.shape[1]
        position = torch.arange(total - queries, total)[:, None]
        hidden = torch.arange(total)[None] > position
        scores.masked_fill_(hidden[:, None], -math.inf)
        sums = torch.logsumexp(scores, -1)
        rows = torch.einsum("qht,htd->qhd", torch.exp(scores - sums[..., None]), v)
        if single:
            rows, sums = rows[0], sums[0]
        if out is not None:
            out.copy_(rows)
            return out, sums
        return rows.numpy(), np.asarray(sums)

    def close(self) -> None:
        pass
