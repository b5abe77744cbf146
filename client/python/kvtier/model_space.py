"""What a transformers model is to kvtier: its layers, its fingerprint, its space."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

RUNTIME = "transformers-5/1"  # the layout of what we store: keys after RoPE, [head][token][dim]
DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
PROBE_TOKENS = 16  # with which a model shows how it rotates keys


def check_model(model: torch.nn.Module) -> None:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise NotImplementedError(
            f"kvtier stores full-attention layers; this model has {', '.join(sorted(kinds))}"
        )
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise NotImplementedError(
            f"kvtier stores full-attention layers; this model slides over {config.sliding_window}"
        )
    both_ways = getattr(config, "use_bidirectional_attention", None)  # Gemma: "vision" is of images
    if not getattr(config, "is_causal", True) or both_ways in (True, "all"):
        raise NotImplementedError("kvtier does causal attention only")
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise NotImplementedError(
            f"the model is on {device}: kvtier's adapter runs on the CPU for now"
        )


def layers_of(model: torch.nn.Module, kv_dtype: str | None = None) -> list[Any]:
    """The geometry of a model's KV, one kvtier.Layer each. `kv_dtype`: "f32", "f16", "bf16"; None:
    the model's."""
    from . import Layer

    check_model(model)
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    layer = Layer(
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        query_heads=heads,
        dim=dim,
        dtype=kv_dtype or DTYPES[model.dtype],
    )
    return [layer] * config.num_hidden_layers


def fingerprint(
    model: torch.nn.Module, tokenizer: Any = None, files: Iterable[str | Path] = ()
) -> str:
    """A hash of the weights and the tokenizer. With `files` (a GGUF, safetensors) of all their
    bytes; without, of every parameter's name, shape and 1,024 values spread over it: quick, and
    blind to an edit of a few weights."""
    digest = hashlib.blake2b(digest_size=16)
    paths = [Path(f) for f in files]
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    if not paths:
        for name, tensor in sorted(model.state_dict().items()):
            flat = tensor.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // 1024)].float().contiguous()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(sample.cpu().numpy().tobytes())
    if tokenizer is not None:
        digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()


def open_space(
    client: Any,
    model: torch.nn.Module,
    tokenizer: Any = None,
    *,
    kv_dtype: str | None = None,
    files: Iterable[str | Path] = (),
    **options: Any,
) -> Any:
    """The space of this model, tokenizer, RoPE and dtype: nothing else ever meets its KV. That is
    literal: without the tokenizer, or with `files` (see `fingerprint`), it is another space, which
    has another's sequences and codebook. So give the same arguments every time."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    detail = json.dumps(
        {"compute": str(model.dtype), "rope": rope, "theta": getattr(config, "rope_theta", None)},
        sort_keys=True,
        default=str,
    )
    layers = layers_of(model, kv_dtype)
    options = {**_rope_of(model), **options}
    return client.open_space(
        model=fingerprint(model, tokenizer, files),
        runtime=RUNTIME,
        layers=layers,
        detail=detail,
        **options,
    )


def _rope_of(model: torch.nn.Module) -> dict[str, Any]:
    """How the model rotates keys, for calibrations and low-rank keys; nothing where it is not one
    rule for all layers and positions. `inv_freq` does not say what turns together, so the model is
    run: tokens that are all the same have keys that differ by their positions alone."""
    found = [m for m in model.modules() if isinstance(getattr(m, "inv_freq", None), torch.Tensor)]
    config = model.config.get_text_config()
    if not found or any(not torch.equal(found[0].inv_freq, other.inv_freq) for other in found):
        return {}
    if any(getattr(m, "rope_type", "") in ("dynamic", "longrope") for m in found):
        return {}  # frequencies change with the length
    frequencies = found[0].inv_freq.float()
    cache = DynamicCache()
    with torch.no_grad():
        ids = torch.full((1, PROBE_TOKENS), config.vocab_size // 2)
        model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    if not cache.layers:
        return {}
    for pairing in ("halves", "neighbours"):
        if all(_turned_so(pairing, frequencies, layer.keys[0].float()) for layer in cache.layers):
            return {
                "rope_pairing": pairing,
                "rope_frequencies": frequencies.tolist(),
                "rope_positions": int(getattr(config, "max_position_embeddings", 0) or 32768),
            }
    return {}


def _turned_so(pairing: str, frequencies: torch.Tensor, keys: torch.Tensor) -> bool:
    """[heads, tokens, dim]: each token's keys are the first's, turned to its position; nine tenths
    of the difference must be explained, for rounding."""
    pairs = len(frequencies)
    if 2 * pairs > keys.shape[-1]:
        return False
    dims = torch.arange(2 * pairs)
    one, two = dims.view(2, pairs) if pairing == "halves" else dims.view(pairs, 2).T
    angles = torch.arange(keys.shape[1])[:, None] * frequencies
    turned = keys[:, :1].repeat(1, keys.shape[1], 1)
    a, b = turned[..., one], turned[..., two]
    turned[..., one] = a * angles.cos() - b * angles.sin()
    turned[..., two] = b * angles.cos() + a * angles.sin()
    return bool((turned - keys).norm() < 0.1 * (keys[:, :1] - keys).norm())
