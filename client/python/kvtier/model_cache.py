"""The cache that a transformers model runs with: a door to one sequence and its view per layer, and
exact attention of several new tokens over what is stored. transformers.py says who calls it."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from . import Error
from .model_space import DTYPES
from .token_table import TokenTable

OBSERVED_TOKENS = 64  # of a piece, one in eight of which is kept
READ_TOKENS = 2048  # rows per head that an exact pass holds at once

_TORCH = {name: dtype for dtype, name in DTYPES.items()}


class KvtierLayer(CacheLayerMixin):
    """One layer's door to the sequence. Holds no rows. Written against every 5.x signature: see
    docs/transformers.md."""

    is_sliding = False
    is_compileable = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, cache: "KvtierCache", index: int):
        super().__init__()
        self.cache, self.index = cache, index
        self.length = cache.sequence.length
        self.is_initialized = True

    def lazy_initialization(
        self, key_states: torch.Tensor, value_states: torch.Tensor | None = None
    ) -> None:
        pass

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any):
        self.cache._write(self.index, self.length, key_states, value_states)
        self.length += key_states.shape[-2]
        return key_states, value_states

    def get_seq_length(self, *_: Any) -> int:
        return self.length

    def get_mask_sizes(self, query: Any) -> tuple[int, int]:
        added = (
            query if isinstance(query, int) else query.shape[0]
        )  # before 5.2 a tensor of positions
        return self.length + added, 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:  # the name before 5.13
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        self.cache.crop(tokens_to_remove)

    def reset(self) -> None:
        self.cache.reset()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        raise NotImplementedError(
            "kvtier keeps one sequence per cache: beam search is not supported"
        )

    def batch_repeat_interleave(self, repeats: int) -> None:
        if repeats != 1:
            raise NotImplementedError(
                "kvtier keeps one sequence per cache: batch 1 only; fork the sequence instead"
            )

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if indices.numel() != 1:
            raise NotImplementedError("kvtier keeps one sequence per cache: batch 1 only")


class KvtierCache(Cache):
    """A transformers cache over one kvtier sequence, read through one view.

    `budget` rows per KV head and layer (0: everything, exact) beside `sinks`, `window` and the
    tail. `close()` seals and closes the sequence; `commit()` makes every token so far durable.
    """

    def __init__(self, sequence: Any, *, kv_dtype: str = "f32", **view: Any):
        self.sequence = sequence
        self.kv_dtype = _TORCH[kv_dtype]
        self._view_options = view
        self.view = sequence.view(**view)
        self.looks_ahead = self.view.looks_ahead
        self._blocks = _chooses_for_blocks(view.get("preset") or "", view.get("budget", 0))
        self._open = self._ran = False
        self._prompt_flags: list[int] | None = None  # while `prefill` reads it, from its first on
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        me = weakref.proxy(self)  # no cycle: the sequence closes with the last use of this
        super().__init__(layers=[KvtierLayer(me, i) for i in range(sequence.layer_count)])

    # ---- what transformers calls

    def crop(self, tokens_to_remove: int) -> None:
        """Negative: drops that many of the newest tokens. Positive: keeps that many (as
        transformers had it)."""
        self._settle()
        length = self.sequence.length
        self._truncate(
            max(0, length + tokens_to_remove)
            if tokens_to_remove <= 0
            else min(length, tokens_to_remove)
        )

    def reset(self) -> None:
        self._settle()
        self._truncate(0)

    # ---- what a user calls

    @property
    def length(self) -> int:
        """Tokens stored, complete in all layers."""
        self._settle()
        return self.sequence.length

    def commit(self) -> None:
        """Returns when every token so far survives kill -9 and power loss."""
        self._settle()
        self.sequence.commit()

    def fork(
        self, tokens: int | None = None, name: str | None = None, **view: Any
    ) -> "KvtierCache":
        """A cache over a new sequence with the first `tokens` tokens of this one; nothing is
        copied. It is read as this one is: with its budget, preset and the rest, but for what `view`
        says."""
        self._settle()
        sequence = self.sequence.fork(self.sequence.length if tokens is None else tokens, name=name)
        return over_new(sequence, DTYPES[self.kv_dtype], self._view_options | view)

    def close(self) -> None:
        self._settle()
        self.view.close()
        self.sequence.close()

    # ---- what install()'s hook and the attention function call

    def _begin(self, ids: list[int], table: TokenTable | None = None) -> None:
        self._settle()
        for layer in self.layers:
            layer.length = self.sequence.length
        self._base, self._count = self.sequence.length, len(ids)
        self._open, self._ran = True, False  # before the piece: Ctrl-C may come behind it
        try:
            if table is None:
                self.sequence.append(ids)
            else:
                self.sequence.append(ids, flags=self._flags(ids, table), texts=table.texts(ids))
        except (Error, TypeError, ValueError):  # refused: no piece was begun
            self._open = False
            raise

    def _ended(self, ran: bool) -> None:
        """The forward that `_begin` was called for is over: it ran to its end, or it threw."""
        self._ran |= ran
        if not ran:
            self._settle()

    def _flags(self, ids: list[int], table: TokenTable) -> list[int]:
        """Boundaries by rules where a text is known: that a sentence ended shows in the next one,
        so a token that comes alone has its own."""
        if self._prompt_flags is not None:
            return self._prompt_flags[self.sequence.length :][: len(ids)]
        return table.flags_of_text(ids) if len(ids) > 1 else table.flags(ids)

    @contextlib.contextmanager
    def _reading(self, prompt: list[int], table: TokenTable | None) -> Iterator[None]:
        """Meanwhile only tokens of the prompt come, in order, from `length` on."""
        if table is not None:
            self._prompt_flags = table.flags_of_text(prompt)
        try:
            yield
        finally:
            self._prompt_flags = None

    def _settle(self) -> None:
        """Ends the piece of the last forward: complete where that forward ran to its end, given up
        where it threw."""
        if not self._open:
            return
        self._open = False
        if self._ran and all(layer.length == self._base + self._count for layer in self.layers):
            self.sequence.finish_piece()
        else:
            self.sequence.abort_piece()
        for layer in self.layers:
            layer.length = self.sequence.length

    def _truncate(self, tokens: int) -> None:
        if tokens < self.sequence.length:
            self.sequence.truncate(tokens)
        for layer in self.layers:
            layer.length = tokens

    def _write(self, layer: int, position: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        if not self._open:
            raise RuntimeError(
                "the model does not announce its tokens: call install(model) of "
                "kvtier.transformers first"
            )
        if keys.shape[0] != 1:
            raise ValueError(
                f"kvtier keeps one sequence per cache: batch {keys.shape[0]} is not supported"
            )
        k, v = keys[0].detach(), values[0].detach()
        if k.dtype != self.kv_dtype:
            k, v = k.to(self.kv_dtype), v.to(self.kv_dtype)
        self.sequence.write(layer, position - self._base, k, v)

    def _attend(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        """[1, heads, n, dim] -> [1, n, heads, dim], as the view's preset and budget say."""
        q = query[0].transpose(0, 1).detach().float().contiguous()
        out = torch.empty_like(q)
        self.view.attend(layer, q, scale, out)
        return out.to(query.dtype)[None]

    def _look_ahead(self, layer: int, query: torch.Tensor, scale: float) -> None:
        """[heads, dim]: a guess of what the layer's queries will be."""
        self.view.look_ahead(layer, query.float().contiguous(), scale)

    def _read(
        self, layer: int, first: int, count: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        heads, dim = self._heads, self._dim
        if self._buffers is None:
            room = heads * READ_TOKENS * dim
            with torch.inference_mode(False):  # they outlive this forward
                self._buffers = (
                    torch.empty(room, dtype=self.kv_dtype),
                    torch.empty(room, dtype=self.kv_dtype),
                )
        k, v = (b[: heads * count * dim].view(heads, count, dim) for b in self._buffers)
        self.sequence.read(layer, first, count, k, v)
        return k.to(dtype)[None], v.to(dtype)[None]

    def _exact(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """[1, heads, n, dim] over the stored rows and, causally, the n new ones: [1, n, heads,
        dim]."""
        _, heads, n, dim = q.shape
        kv_heads = k.shape[1]
        self._heads, self._dim = kv_heads, k.shape[3]
        group = heads // kv_heads
        expand = (lambda x: x.repeat_interleave(group, 1)) if group > 1 else (lambda x: x)
        self._observe(layer, q)
        out, lse = _flash(q, expand(k), expand(v), True, scale)
        out = out.to(lse.dtype)  # rounded to the model's dtype once, not at every part
        # Against stored rows nothing is hidden, so a group's queries are simply more queries of
        # their KV head.
        folded = q.reshape(1, kv_heads, group * n, dim)
        out, lse = out.reshape(1, kv_heads, group * n, -1), lse.reshape(1, kv_heads, group * n)
        for first in range(0, self._base, READ_TOKENS):
            count = min(READ_TOKENS, self._base - first)
            part, part_lse = _flash(folded, *self._read(layer, first, count, q.dtype), False, scale)
            total = torch.logaddexp(lse, part_lse)
            out = out * (lse - total).exp().unsqueeze(-1)
            out += part * (part_lse - total).exp().unsqueeze(-1)
            lse = total
        return out.to(q.dtype).reshape(1, heads, n, -1).transpose(1, 2)

    def _observe(self, layer: int, q: torch.Tensor) -> None:
        """A few queries of every piece: what codebooks of key codes are calibrated with."""
        newest = q[0, :, -OBSERVED_TOKENS:].transpose(0, 1)
        self.sequence.observe_queries(layer, newest.detach().float().contiguous())


def over_new(sequence: Any, kv_dtype: str, view: dict[str, Any]) -> KvtierCache:
    """Where the view is refused, the sequence that was just made goes again: the call can be
    repeated with the same name."""
    from . import Error

    try:
        return KvtierCache(sequence, kv_dtype=kv_dtype, **view)
    except BaseException:  # Ctrl-C, too
        client, number = sequence.space.client, sequence.id
        with contextlib.suppress(Error):  # a daemon that is gone; the reason above counts
            sequence.close()
            client.request({"op": "rm", "target": number})
        raise


def _chooses_for_blocks(preset: str, budget: int) -> bool:
    """The view attends to several new tokens by its budget, too."""
    from . import presets

    return bool(preset and budget) and presets(preset)["presets"][0]["query"] == "block"


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float):
    """Attention and its log-sum-exp, both per query; as many heads in k as in q."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, scale=scale
    )
    return out, lse.reshape(q.shape[:3])
