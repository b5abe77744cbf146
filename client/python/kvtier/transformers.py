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

Limits, each an error that says so: batch 1, causal masks without padding, positions in order,
full-attention layers, CPU tensors, at most 1,024 new tokens in one forward (`prefill` cuts longer
ones). One thread at a time per model.
transformers 5.2 and later.
"""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence as AnySequence
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from . import look_ahead
from .model_cache import OBSERVED_TOKENS, KvtierCache, over_new
from .model_space import check_model, fingerprint, layers_of, open_space
from .token_table import TokenTable, boundaries

__all__ = [
    "OBSERVED_TOKENS",
    "PIECE_TOKENS",
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


class _Join:
    """Shared by a model's attention modules: the cache of the forward that runs now in this thread,
    or none. That forward keeps it, nothing here: after Ctrl-C no hook runs that would let it go."""

    tokens: TokenTable | None = None  # None: not known

    def __init__(self, guesses: bool):
        self.guesses = guesses  # of what queries the next layer will have
        self._running = threading.local()

    def __reduce__(self):  # for copies of the model
        return _Join, (self.guesses,), {"tokens": self.tokens}

    @property
    def cache(self) -> KvtierCache | None:
        cache = getattr(self._running, "cache", None)
        return None if cache is None else cache()

    @cache.setter
    def cache(self, cache: KvtierCache | None) -> None:
        self._running.cache = None if cache is None else weakref.ref(cache)


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
    cache = join and join.cache
    if cache is None:  # another kind of cache, or none: plain attention
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    for name in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"kvtier does not do attention with {name} yet")
    if not getattr(module, "is_causal", True):
        raise NotImplementedError("kvtier does causal attention only")
    scale = scaling if scaling is not None else 1 / math.sqrt(query.shape[-1])
    index = module.layer_idx
    with torch.no_grad():
        if query.shape[2] == 1 or cache._blocks:
            return cache._attend(index, query, scale), None
        return cache._exact(index, query, key, value, scale), None


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
    known = getattr(model, "_kvtier", None)
    join = known or _Join(look_ahead.can_guess(model))
    if tokenizer is not None and join.tokens is None:
        join.tokens = TokenTable(tokenizer)
    if language is not None and join.tokens is not None:
        join.tokens.language = language
    AttentionInterface.register("kvtier", _attention)
    AttentionMaskInterface.register("kvtier", sdpa_mask)  # without it masks vanish silently
    model.set_attn_implementation("kvtier")
    if known is not None:
        return
    model._kvtier = join
    for module in modules:
        module._kvtier = join
    model.base_model.register_forward_pre_hook(partial(_before_forward, join), with_kwargs=True)
    model.base_model.register_forward_hook(partial(_after_forward, join), always_call=True)
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
    if len(args) > 1:
        raise ValueError("kvtier reads a forward's arguments: name all but the first, input_ids")
    if kwargs.get("is_causal") is False:
        raise ValueError("kvtier does causal attention only: leave is_causal out")
    _check_mask(kwargs.get("attention_mask"), cache.length, ids.shape[1])
    positions = kwargs.get("position_ids")
    own = torch.arange(cache.length, cache.length + ids.shape[1])
    if positions is not None and (
        positions.shape[-1:] != own.shape or not bool((positions == own).all())
    ):
        raise ValueError(
            f"position_ids are not {cache.length} to {cache.length + ids.shape[1] - 1}, one by "
            "one: kvtier finds rows by their tokens, so leave position_ids out"
        )
    join.cache._begin(ids[0].tolist(), join.tokens)


def _check_mask(mask: Any, length: int, new: int) -> None:
    """Only that every token sees all before it: rows are found again by nothing but tokens."""
    if mask is None:
        return
    if getattr(mask, "ndim", None) != 2:
        raise ValueError(
            "kvtier does causal attention only: pass no attention_mask, or one of two dimensions"
        )
    if not bool(mask.all()):
        raise ValueError(
            "kvtier does not store padding: drop the padded tokens and pass a mask of ones"
        )
    if mask.shape[1] not in (new, length + new):
        raise ValueError(
            f"attention_mask covers {mask.shape[1]} tokens, cache and input are {length + new}: "
            "pass the full prompt with the restored cache"
        )


def _after_forward(join: _Join, model: torch.nn.Module, args: tuple, output: Any) -> None:
    """Without an output: the forward threw, and the call that is made again gives its tokens
    again."""
    cache, join.cache = join.cache, None  # what is kept here would stay open
    if cache is not None:
        cache._ended(ran=output is not None)


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
    return over_new(sequence, space.dtype, view)


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
    if not ids and (held or spare):
        raise ValueError("there are no tokens: give the whole text, from its first token on")
    keep = min(same, len(ids) - spare)
    if keep >= held:
        return
    if same < len(ids):
        found = f", and only the first {same} are those that were given"
    elif same < held:
        found = f": all {same} that were given, and {held - same} more"
    else:
        found = ", all that were given, and the model needs one to start from"
    mend = (
        f"go on with cache.fork(tokens={keep}), or cut the rest off with cache.crop({keep - held})"
        if keep
        else "begin a new cache with attach(space, ids)"
    )
    raise ValueError(f"the cache holds {held} tokens{found}: {mend}")


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
