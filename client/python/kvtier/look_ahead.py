"""For presets whose rows come a layer ahead (codes-lookahead, progressive-lookahead): what queries
the next layer will probably have. The guess is the input of a layer, through the next layer's norm
and query projection (InfiniGen, arXiv 2406.19707, section 4.3): residual streams change little from
layer to layer. What is chosen does not depend on it."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch

from . import InvalidArgument, NotFinite


def can_guess(model: torch.nn.Module) -> bool:
    """Layers built as Llama's, a norm before attention, with a rotation by the usual name: most of
    them."""
    layers = getattr(model.base_model, "layers", None)
    return layers is not None and all(
        hasattr(layer, "input_layernorm")
        and hasattr(getattr(layer, "self_attn", None), "q_proj")
        and hasattr(_file_of(layer.self_attn), "apply_rotary_pos_emb")
        for layer in layers
    )


def register(model: torch.nn.Module, join: Any) -> None:
    """`join.cache`: of the forward that runs now, or none. `join.guesses` ends where it turns out
    that a layer is built in another way."""
    layers = model.base_model.layers
    for before, after in zip(layers, layers[1:]):
        before.register_forward_pre_hook(partial(_guess, join, after), with_kwargs=True)


def _guess(
    join: Any, after: torch.nn.Module, _: torch.nn.Module, args: tuple, kwargs: dict
) -> None:
    states = args[0] if args else kwargs["hidden_states"]
    if join.cache is None or not join.cache.looks_ahead or states.shape[1] != 1:
        return
    if not join.guesses:
        return
    attention = after.self_attn
    try:
        with torch.no_grad():
            q = _queries(attention, after.input_layernorm(states), *kwargs["position_embeddings"])
        join.cache._look_ahead(attention.layer_idx, q[0, :, 0], attention.scaling)
    except NotFinite:
        pass  # of these numbers, not of how layers are built
    except (AttributeError, InvalidArgument, KeyError, RuntimeError, TypeError, ValueError):
        join.guesses = False  # the next forward says so


def _queries(
    attention: torch.nn.Module, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """[1, 1, hidden] -> [1, heads, 1, dim], turned as the model's own file turns them: all
    dimensions or the first of them."""
    q = attention.q_proj(states)
    norm = getattr(attention, "q_norm", lambda x: x)
    if getattr(norm, "weight", q[..., :0]).shape[-1] == q.shape[-1]:  # over all heads together
        q, norm = norm(q), lambda x: x
    q = norm(q.view(*states.shape[:-1], -1, attention.head_dim)).transpose(1, 2)
    if hasattr(attention, "q_layernorm"):
        q = attention.q_layernorm(q)
    if not getattr(attention, "use_rope", True):
        return q
    turns, rest = q[..., : cos.shape[-1]], q[..., cos.shape[-1] :]
    turned, _ = _file_of(attention).apply_rotary_pos_emb(turns, turns, cos, sin)
    return torch.cat([turned, rest], -1)


def _file_of(module: torch.nn.Module) -> Any:
    return sys.modules[type(module).__module__]
