"""Puts a Reference into a transformers model: an attention function, and the hook to switch it on.

    with installed(model), attending(model, reference):
        model(ids, past_key_values=cache, use_cache=True)   # cache: the stored rows, exact

For presets that look a layer ahead, a layer's queries are guessed from the input of the layer
before: its own norm, projection and rotation, applied to what has not passed that layer yet. That
part is for models built as Llama is (input_layernorm, self_attn.q_proj).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "exact-reference"


class _Link:
    """Shared by a model's attention modules."""

    reference: Any = None  # None: full attention
    seen: Callable[[int, torch.Tensor], None] | None = None  # (layer, queries [Hq, n, d])


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
):
    link = module._exact_reference
    if link.seen is not None:
        link.seen(module.layer_idx, query[0])
    if link.reference is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    out = link.reference.attend(module.layer_idx, query[0], key[0], value[0], scale)
    return out.transpose(0, 1)[None], None


def install(model: torch.nn.Module) -> None:
    """Idempotent; takes the place of another attention function."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    if getattr(model, "_exact_reference", None) is None:
        link = model._exact_reference = _Link()
        for module in model.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module._exact_reference = link


@contextmanager
def installed(model: torch.nn.Module) -> Iterator[None]:
    """install(), and what was there before afterwards."""
    before = model.config._attn_implementation
    install(model)
    try:
        yield
    finally:
        if before != NAME:
            model.set_attn_implementation(before)


@contextmanager
def attending(model: torch.nn.Module, reference: Any) -> Iterator[None]:
    model._exact_reference.reference = reference
    hooks = _guessing(model, reference) if reference and reference.looks_ahead else []
    try:
        yield
    finally:
        model._exact_reference.reference = None
        for hook in hooks:
            hook.remove()


def _guessing(model: torch.nn.Module, reference: Any) -> list[Any]:
    layers = model.base_model.layers
    if not all(hasattr(x, "input_layernorm") and hasattr(x.self_attn, "q_proj") for x in layers):
        raise NotImplementedError(
            f"looking a layer ahead needs layers built as Llama's; {type(model).__name__} differs"
        )

    def guess(_: torch.nn.Module, args: tuple, kwargs: dict, after: torch.nn.Module) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        attention = after.self_attn
        q = attention.q_proj(after.input_layernorm(states))
        q = q.view(*states.shape[:-1], -1, attention.head_dim)
        if hasattr(attention, "q_norm"):
            q = attention.q_norm(q)
        cos, sin = kwargs["position_embeddings"]
        reference.ahead(attention.layer_idx, turned(q[0].transpose(0, 1), cos[0], sin[0]))

    return [
        before.register_forward_pre_hook(partial(guess, after=after), with_kwargs=True)
        for before, after in zip(layers, layers[1:])
    ]


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE as Llama applies it: x [Hq, n, d], cos and sin [n, d]."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


@contextmanager
def seeing(
    model: torch.nn.Module, seen: Callable[[int, torch.Tensor], None]
) -> Iterator[None]:
    """Full attention that shows the queries of every layer."""
    model._exact_reference.seen = seen
    try:
        yield
    finally:
        model._exact_reference.seen = None


def cache_of(keys: torch.Tensor, values: torch.Tensor) -> DynamicCache:
    """A cache that begins with keys and values [L, H, C, d], which it does not copy or change."""
    cache = DynamicCache()
    cache.layers = []
    for k, v in zip(keys, values):
        layer = DynamicLayer()
        layer.lazy_initialization(k[None], v[None])
        layer.keys, layer.values = k[None], v[None]
        cache.layers.append(layer)
    return cache
