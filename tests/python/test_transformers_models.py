"""The adapter on small random models of families whose layers are built in other ways than
Llama's."""

from __future__ import annotations

import pytest
import torch
import transformers

from kvtier import transformers as adapter

SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
FAMILIES = {"Llama": {}, "GPTNeoX": {"num_key_value_heads": None}}


def small(family: str, **options) -> torch.nn.Module:
    torch.manual_seed(7)
    config = getattr(transformers, f"{family}Config")(**SMALL | FAMILIES[family] | options)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:.*its layers are not built as Llama's")
def test_a_budget_with_rows_that_come_ahead(client, family):
    """Whether or not the next layer's queries can be guessed: a budget for all is exact."""
    model = small(family)
    ids = torch.randint(1, 96, (1, 400))
    with torch.inference_mode():
        want = model(input_ids=ids).logits[0]
    adapter.install(model)
    space = adapter.open_space(client, model)
    cache = adapter.attach(space, ids)
    adapter.prefill(model, cache, ids[:, :390])
    cache.close()  # seals
    view = {"budget": 1024, "preset": "codes-lookahead"}
    cache = adapter.attach(space, ids, **view)
    assert cache.length == 390
    for i in range(390, 400):
        logits = adapter.prefill(model, cache, ids[:, : i + 1])
        assert float((logits - want[i]).abs().max()) < 1e-4
    cache.close()


def test_install_that_fails_leaves_the_model_as_it_was(monkeypatch):
    model = small("Llama")

    def fail(_):
        raise RuntimeError("no vocabulary")

    monkeypatch.setattr(adapter, "TokenTable", fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no vocabulary"):
            adapter.install(model, tokenizer=object())
    assert model.config._attn_implementation == "sdpa" and not hasattr(model, "_kvtier")
    monkeypatch.undo()
    adapter.install(model)
    assert model._kvtier.guesses
