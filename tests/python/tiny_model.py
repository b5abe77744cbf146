"""A tiny random model with a stored context, for tests of the reference of the presets."""

from __future__ import annotations

import pytest
import torch

import kvtier.quality  # noqa: F401  (the package is there)
from kvtier.quality.reference import PRESETS, Preset, Reference, codebook
from kvtier.quality.reference.attention import attending, cache_of, install
from kvtier.quality.reference.layer import Layer

STORED, STEPS, BUDGET, SINKS, WINDOW = 300, 24, 48, 4, 8


@pytest.fixture(scope="module")
def tiny():
    """(model, keys, values, ids of the steps, delimiters): a context of 300 tokens and 24 more."""
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=96,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
    )
    model = LlamaForCausalLM(config).eval()
    for layer in model.model.layers:  # sharper than a fresh model, or no selection would matter
        layer.self_attn.q_proj.weight.data *= 12
    install(model)
    ids = torch.randint(97, (1, STORED + STEPS))
    cache = DynamicCache()
    with torch.inference_mode():
        model(input_ids=ids[:, :STORED], past_key_values=cache, use_cache=True)
    keys = torch.stack([layer.keys[0] for layer in cache.layers])
    values = torch.stack([layer.values[0] for layer in cache.layers])
    return model, keys, values, ids[:, STORED:], (ids[0] % 7 == 0) * 2


@pytest.fixture(scope="module")
def books(tiny):
    _, keys, *_ = tiny
    torch.manual_seed(2)
    return [codebook.train_codebook(k, torch.randn(2, 200, 16), 4, bits=4) for k in keys]


def reference(tiny, preset: Preset | str, books=None, **settings) -> Reference:
    preset = PRESETS[preset] if isinstance(preset, str) else preset
    settings = {"budget": BUDGET, "sinks": SINKS, "window": WINDOW} | settings
    settings["frequency"] = tiny[0].model.rotary_emb.inv_freq
    return Reference(preset, stored=STORED, boundary=tiny[4], layers=3, books=books, **settings)


def logits(tiny, one: Reference | None, piece: int = STEPS) -> torch.Tensor:
    model, keys, values, ids, _ = tiny
    cache = cache_of(keys, values)
    with torch.inference_mode(), attending(model, one):
        parts = [
            model(input_ids=part, past_key_values=cache, use_cache=True).logits[0]
            for part in ids.split(piece, 1)
        ]
    return torch.cat(parts)


def differ(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def layer_of(tiny, queries: torch.Tensor | None = None, index: int = 1) -> Layer:
    _, keys, values, _, boundary = tiny
    torch.manual_seed(5)
    if queries is None:
        queries = torch.randn(2, 3, STEPS, 16)
    rows = torch.zeros(2, STEPS, 16)
    k, v = torch.cat([keys[index], rows], 1), torch.cat([values[index], rows], 1)
    return Layer(index, 3, k, v, queries, STORED, 0.25, SINKS, WINDOW, boundary)
