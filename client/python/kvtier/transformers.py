"""kvtier in Hugging Face transformers: a `Cache` whose rows live in kvtier, and an attention
function over them.

    import kvtier
    from kvtier import transformers as kvt

    kvt.install(model, tokenizer)                        # once per model
    space = kvt.open_space(kvtier.Client(), model, tokenizer)
    cache = kvt.attach(space, ids, name="report", budget=1024)   # finds what is stored of ids
    kvt.prefill(model, cache, ids)                       # computes only what is not
    model.generate(ids, past_key_values=cache)           # the full prompt, as transformers wants it

How it works. A model's attention hands K and V of the new tokens to `Cache.update`, which writes
them into the sequence and keeps nothing, and then calls the attention function with q. One new
token: the view attends, in C++, over as many rows as its budget allows. Several: exact attention
over the stored rows, read piece by piece into two buffers of 2,048 rows, merged with the causal
part over the new ones by log-sum-exp; or through the view, where its preset chooses for blocks.

Limits, each an error that says so: batch 1, no padding, full-attention layers, CPU tensors, at most
1,024 new tokens in one forward (`prefill` cuts longer ones). One thread at a time per model.
transformers 5.2 and later.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence as AnySequence
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from . import look_ahead
from .model_space import DTYPES, check_model, fingerprint, layers_of, open_space
from .token_table import TokenTable, boundaries

__all__ = [
    "KvtierCache",
    "attach",
    "boundaries",
    "fingerprint",
    "generate",
    "install",
    "layers_of",
    "open_space",
    "prefill",
    "resume",
]

PIECE_TOKENS = 1024  # most new tokens of one forward
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
        self._open = False
        self._prompt_flags: list[int] | None = None  # while `prefill` reads it, from its first on
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        super().__init__(layers=[KvtierLayer(self, i) for i in range(sequence.layer_count)])

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
        return _over_new(sequence, DTYPES[self.kv_dtype], self._view_options | view)

    def close(self) -> None:
        self._settle()
        self.view.close()
        self.sequence.close()

    # ---- what install()'s hook and the attention function call

    def _begin(self, ids: list[int], table: TokenTable | None = None) -> None:
        self._settle()
        for layer in self.layers:
            layer.length = self.sequence.length
        if table is None:
            self.sequence.append(ids)
        else:
            self.sequence.append(ids, flags=self._flags(ids, table), texts=table.texts(ids))
        self._base, self._count, self._open = self.sequence.length, len(ids), True

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
        if all(layer.length == self._base + self._count for layer in self.layers):
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
        # Against stored rows nothing is hidden, so a group's queries are simply more queries of
        # their KV head.
        folded = q.reshape(1, kv_heads, group * n, dim)
        out, lse = out.reshape(1, kv_heads, group * n, -1), lse.reshape(1, kv_heads, group * n)
        for first in range(0, self._base, READ_TOKENS):
            count = min(READ_TOKENS, self._base - first)
            part, part_lse = _flash(folded, *self._read(layer, first, count, q.dtype), False, scale)
            total = torch.logaddexp(lse, part_lse)
            out = out * (lse - total).exp().unsqueeze(-1).to(out.dtype)
            out += part * (part_lse - total).exp().unsqueeze(-1).to(out.dtype)
            lse = total
        return out.reshape(1, heads, n, -1).transpose(1, 2)

    def _observe(self, layer: int, q: torch.Tensor) -> None:
        """A few queries of every piece: what codebooks of key codes are calibrated with."""
        newest = q[0, :, -OBSERVED_TOKENS:].transpose(0, 1)
        self.sequence.observe_queries(layer, newest.detach().float().contiguous())


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


class _Join:
    """Shared by a model's attention modules: the cache of the forward that runs now, or none."""

    cache: KvtierCache | None = None
    tokens: TokenTable | None = None  # None: not known
    guesses: bool = True  # of what queries the next layer will have


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
):
    join = getattr(module, "_kvtier", None)
    if join is None or join.cache is None:  # another kind of cache, or none: plain attention
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    for name in ("sliding_window", "softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"kvtier does not do attention with {name} yet")
    scale = scaling if scaling is not None else 1 / math.sqrt(query.shape[-1])
    index = module.layer_idx
    with torch.no_grad():
        if query.shape[2] == 1 or join.cache._blocks:
            return join.cache._attend(index, query, scale), None
        return join.cache._exact(index, query, key, value, scale), None


def install(model: torch.nn.Module, tokenizer: Any = None, language: str | None = None) -> None:
    """Makes `model` able to run with a KvtierCache. With any other cache it goes on as with "sdpa".
    With a `tokenizer` tokens are stored with their texts, which `kvtier show` gives, and with the
    kind of boundary that they are, which presets by sentences need. `language` (BCP 47, "en" at
    first): whose sentences and abbreviations prompts are read with from now on. Idempotent."""
    check_model(model)
    modules = [m for m in model.modules() if isinstance(getattr(m, "layer_idx", None), int)]
    if not modules:
        raise NotImplementedError(
            f"{type(model).__name__}: none of its modules has a layer_idx, as attention has"
        )
    AttentionInterface.register("kvtier", _attention)
    AttentionMaskInterface.register("kvtier", sdpa_mask)  # without it masks vanish silently
    model.set_attn_implementation("kvtier")
    known = getattr(model, "_kvtier", None)
    join = known or _Join()
    if tokenizer is not None and join.tokens is None:
        join.tokens = TokenTable(tokenizer)
    if language is not None and join.tokens is not None:
        join.tokens.language = language
    if known is not None:
        return
    model._kvtier = join
    for module in modules:
        module._kvtier = join
    model.base_model.register_forward_pre_hook(partial(_before_forward, join), with_kwargs=True)
    join.guesses = look_ahead.can_guess(model)
    if join.guesses:
        look_ahead.register(model, join)


def _before_forward(join: _Join, model: torch.nn.Module, args: tuple, kwargs: dict) -> None:
    """Tells the cache which tokens come: update() sees K and V, never their ids."""
    cache = kwargs.get("past_key_values")
    join.cache = cache if isinstance(cache, KvtierCache) else None
    if join.cache is None:
        return
    if join.cache.looks_ahead and not join.guesses:
        warnings.warn(
            f"{type(model).__name__}: its layers are not built as Llama's, so nothing is known of "
            "the next layer's queries, and every step waits for the rows that it lacks",
            stacklevel=2,
        )
    implementation = model.config._attn_implementation
    if implementation != "kvtier":  # its attention would see the new tokens alone
        raise ValueError(
            f"the model's attention was set to {implementation!r} after "
            "kvtier.transformers.install: call install(model) again before it runs with a cache "
            "of kvtier"
        )
    ids = kwargs.get("input_ids", args[0] if args else None)
    if ids is None:
        raise ValueError(
            "kvtier finds stored context by token ids: pass input_ids, not inputs_embeds"
        )
    if ids.shape[0] != 1:
        raise ValueError(
            f"kvtier keeps one sequence per cache: batch {ids.shape[0]} is not supported"
        )
    if ids.shape[1] > PIECE_TOKENS:
        raise ValueError(
            f"{ids.shape[1]} new tokens in one forward, at most {PIECE_TOKENS}: use "
            "kvtier.transformers.prefill, or generate(..., prefill_chunk_size=1024)"
        )
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.ndim == 2 and not bool(mask.all()):
        raise ValueError(
            "kvtier does not store padding: drop the padded tokens and pass a mask of ones"
        )
    if (
        mask is not None
        and mask.ndim == 2
        and mask.shape[1] not in (ids.shape[1], cache.length + ids.shape[1])
    ):
        raise ValueError(
            f"attention_mask covers {mask.shape[1]} tokens, cache and input are "
            f"{cache.length + ids.shape[1]}: pass the full prompt with the restored cache"
        )
    positions = kwargs.get("position_ids")
    if positions is not None and int(positions.flatten()[0]) != cache.length:
        raise ValueError(
            f"position_ids begin at {int(positions.flatten()[0])}, the cache ends at {cache.length}"
        )
    join.cache._begin(ids[0].tolist(), join.tokens)


# ---- use -----------------------------------------------------------------------------------------


def _ids(ids: torch.Tensor | AnySequence[int]) -> list[int]:
    if isinstance(ids, torch.Tensor):
        if ids.ndim == 2 and ids.shape[0] != 1:
            raise ValueError(
                f"kvtier keeps one sequence per cache: batch {ids.shape[0]} is not supported"
            )
        return ids.reshape(-1).tolist()
    return list(ids)


def attach(
    space: Any,
    ids: torch.Tensor | AnySequence[int],
    *,
    name: str | None = None,
    private: bool = False,
    **view: Any,
) -> KvtierCache:
    """A cache over a new sequence that shares the longest stored prefix of `ids`, short of the last
    one: the model needs one token to start from. `cache.length` says how much was found."""
    sequence = space.create(_ids(ids)[:-1], name=name, private=private)
    return _over_new(sequence, space.dtype, view)


def _over_new(sequence: Any, kv_dtype: str, view: dict[str, Any]) -> KvtierCache:
    """Where the view is refused, the sequence that was just made goes again: the call can be
    repeated with the same name."""
    from . import Error

    try:
        return KvtierCache(sequence, kv_dtype=kv_dtype, **view)
    except Exception:
        client, number = sequence.space.client, sequence.id
        with contextlib.suppress(Error):  # a daemon that is gone; the reason above counts
            sequence.close()
            client.request({"op": "rm", "target": number})
        raise


def resume(space: Any, name: str, *, writable: bool = True, **view: Any) -> KvtierCache:
    """A cache over the sequence of that name, as it was left."""
    return KvtierCache(space.open(name, writable=writable), kv_dtype=space.dtype, **view)


def prefill(
    model: torch.nn.Module,
    cache: Cache,
    ids: torch.Tensor | AnySequence[int],
    *,
    piece: int = PIECE_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> torch.Tensor | None:
    """Runs the model over the part of `ids` that the cache does not hold yet, piece by piece, and
    returns the logits after the last token ([1, vocabulary]), or None where nothing was left to do.
    `progress(done, total)`. ValueError where the cache holds other tokens, or more."""
    prompt = _ids(ids)
    if isinstance(cache, KvtierCache):
        _check_held(cache, prompt)
    todo = prompt[cache.get_seq_length() :]
    reading: Any = contextlib.nullcontext()
    if todo and isinstance(cache, KvtierCache):
        join = getattr(model, "_kvtier", None)
        reading = cache._reading(prompt, join and join.tokens)
    logits = None
    with torch.inference_mode(), reading:
        for first in range(0, len(todo), piece):
            part = torch.tensor([todo[first : first + piece]])
            logits = model(
                input_ids=part, past_key_values=cache, use_cache=True, logits_to_keep=1
            ).logits[:, -1]
            if progress is not None:
                progress(first + part.shape[1], len(todo))
    if isinstance(cache, KvtierCache):
        cache._settle()
    return logits


def _check_held(cache: KvtierCache, ids: list[int], spare: int = 0) -> None:
    """The cache holds the beginning of `ids`, short of the last `spare`: an answer to other tokens
    would look like one."""
    cache._settle()
    held = cache.sequence.length
    stored = cache.sequence.tokens(0, min(held, len(ids)))[:, 0].tolist() if held else []
    same = next((i for i, id_ in enumerate(stored) if id_ != ids[i]), len(stored))
    keep = min(same, len(ids) - spare)
    if keep >= held:
        return
    if same < len(ids):
        found = f", and only the first {same} are those that were given"
    elif same < held:
        found = f": all {same} that were given, and {held - same} more"
    else:
        found = ", all that were given, and the model needs one to start from"
    raise ValueError(
        f"the cache holds {held} tokens{found}: go on with cache.fork(tokens={keep}), or cut the "
        f"rest off with cache.crop({keep - held})"
    )


def generate(
    model: torch.nn.Module, cache: Cache, ids: torch.Tensor | AnySequence[int], **kwargs: Any
) -> torch.Tensor:
    """model.generate over the full prompt `ids`, computing in pieces what the cache does not
    hold."""
    prompt = torch.tensor([_ids(ids)])
    if isinstance(cache, KvtierCache):
        _check_held(cache, _ids(ids), spare=1)
    prefill(model, cache, prompt[:, :-1])
    return model.generate(
        prompt, attention_mask=torch.ones_like(prompt), past_key_values=cache, **kwargs
    )
