"""For presets whose rows come a layer ahead (codes-lookahead, progressive-lookahead): what queries
the next layer will probably have. The guess is the input of a layer, through the next layer's norm
and query projection (InfiniGen, arXiv 2406.19707, section 4.3): residual streams change little from
layer to layer. What is chosen does not depend on it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch


def can_guess(model: torch.nn.Module) -> bool:
    """Layers built as Llama's, a norm before attention and rotation by halves: most of them."""
    layers = getattr(model.base_model, "layers", None)
    return layers is not None and all(
        hasattr(layer, "input_layernorm") and hasattr(getattr(layer, "self_attn", None), "q_proj")
        for layer in layers
    )


def register(model: torch.nn.Module, join: Any) -> None:
    """`join.cache`: of the forward that runs now, or none."""
    layers = model.base_model.layers
    for before, after in zip(layers, layers[1:]):
        before.register_forward_pre_hook(partial(_guess, join, after), with_kwargs=True)


def _guess(
    join: Any, after: torch.nn.Module, _: torch.nn.Module, args: tuple, kwargs: dict
) -> None:
    states = args[0] if args else kwargs["hidden_states"]
    if join.cache is None or not join.cache.looks_ahead or states.shape[1] != 1:
        return
    attention = after.self_attn
    with torch.no_grad():
        q = attention.q_proj(after.input_layernorm(states))
        q = q.view(*states.shape[:-1], -1, attention.head_dim)
        if hasattr(attention, "q_norm"):
            q = attention.q_norm(q)
        cos, sin = (x.unsqueeze(-2) for x in kwargs["position_embeddings"])
        half = q.shape[-1] // 2
        q = q * cos + torch.cat([-q[..., half:], q[..., :half]], -1) * sin
        join.cache._look_ahead(attention.layer_idx, q[0, 0], attention.scaling)
