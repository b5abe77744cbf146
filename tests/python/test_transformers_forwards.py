"""One forward of the transformers adapter, on small random models: what is refused, what stays
where it threw, how exact it is in 16 bits."""

from __future__ import annotations

import pytest
import torch
from reference import ReferenceSequence

from kvtier import model_cache, transformers as adapter


@pytest.mark.parametrize("dtype, name", [(torch.bfloat16, "bf16"), (torch.float16, "f16")])
def test_many_parts_are_merged_without_loss(dtype, name, monkeypatch):
    """16 bits: the result is rounded once, however many parts the stored rows are read in."""
    monkeypatch.setattr(model_cache, "READ_TOKENS", 16)
    torch.manual_seed(5)
    heads, stored, new, dim = 2, 16 * 64, 8, 32
    cache = adapter.KvtierCache(ReferenceSequence(1, heads, dim, dtype), kv_dtype=name)
    k, v = (torch.randn(1, heads, stored + new, dim).to(dtype) for _ in range(2))
    q = torch.randn(1, 2 * heads, new, dim).to(dtype)
    for ids in (range(stored), range(stored, stored + new)):
        cache._begin(list(ids))
        cache.update(k[:, :, ids.start : ids.stop], v[:, :, ids.start : ids.stop], 0)
    got = cache._exact(0, q, k[:, :, stored:], v[:, :, stored:], dim**-0.5)
    assert got.dtype == dtype
    want = torch.nn.functional.scaled_dot_product_attention(
        *(x.double() for x in (q, k, v)),
        attn_mask=torch.ones(new, stored + new).tril(stored).bool(),
        enable_gqa=True,
    ).transpose(1, 2)
    error = (got.double() - want).norm() / want.norm()
    assert error < torch.finfo(dtype).eps / 2
