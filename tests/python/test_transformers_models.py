"""The adapter on small random models of families whose layers are built, or whose keys are turned,
in other ways than Llama's."""

from __future__ import annotations

import pytest
import torch
import transformers
from reference import ReferenceSequence

import kvtier
from kvtier import look_ahead
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
FAMILIES = {  # a config's name, and what follows a blank tells tests apart
    "Llama": {},
    "Qwen3": {"head_dim": 16},
    "GPTNeoX": {"num_key_value_heads": None},
    "Phi": {},  # half of the dimensions turn
    "Phi with norms": {"qk_layernorm": True},
    "StableLm with norms": {"qk_layernorm": True},
    "Glm": {"head_dim": 16},  # half of them, neighbours
    "Cohere": {"use_qk_norm": True},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},  # a norm over all heads together
    "SmolLM3": {"no_rope_layers": [1, 0, 1]},
}
PAIRINGS = {
    "Llama": ("halves", 8),
    "GPTNeoX": ("halves", 2),
    "Phi": ("halves", 4),
    "Glm": ("neighbours", 4),
    "Cohere": ("neighbours", 8),
}


def small(family: str, **options) -> torch.nn.Module:
    torch.manual_seed(7)
    name = family.split()[0]
    config = getattr(transformers, f"{name}Config")(**SMALL | FAMILIES.get(family, {}) | options)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for weights in model.parameters():  # norms and biases, too, are others in each layer
            weights.add_(torch.randn_like(weights) * 0.1)
    return model


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
    assert model._kvtier.guesses == (family != "GPTNeoX")
    cache.close()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "GPTNeoX"])
def test_guesses_are_the_next_layers_queries(family, monkeypatch):
    """Layers that add nothing: then the next one's queries are exactly what was guessed."""
    model = add_nothing(small(family))
    adapter.install(model)
    sequence = ReferenceSequence(3, model.config.num_key_value_heads, 16)
    cache = adapter.KvtierCache(sequence)
    cache.looks_ahead = True
    guessed, had = {}, {}
    monkeypatch.setattr(
        cache, "_look_ahead", lambda layer, q, scale: guessed.update({layer: (q, scale)})
    )
    attend = cache._attend
    monkeypatch.setattr(
        cache,
        "_attend",
        lambda layer, q, scale: (
            had.update({layer: (q[0, :, 0].detach(), scale)}) or attend(layer, q, scale)
        ),
    )
    ids = torch.randint(1, 96, (1, 9))
    for part in (ids[:, :8], ids[:, 8:]):
        model(input_ids=part, past_key_values=cache)
    assert sorted(guessed) == [1, 2] and sorted(had) == [0, 1, 2]
    for layer, (q, scale) in guessed.items():
        assert scale == had[layer][1]
        assert float((q - had[layer][0]).abs().max()) < 1e-5 * float(q.abs().max())


def test_layers_built_in_another_way_are_not_guessed(monkeypatch):
    """Known when the guess fails; from then on every forward says so."""
    model = small("Llama")
    adapter.install(model)
    cache = adapter.KvtierCache(ReferenceSequence(3, 2, 16))
    cache.looks_ahead = True
    monkeypatch.setattr(look_ahead, "_queries", lambda *_: torch.zeros(3).view(2))
    ids = torch.randint(1, 96, (1, 9))
    for part in (ids[:, :7], ids[:, 7:8]):
        assert model._kvtier.guesses
        model(input_ids=part, past_key_values=cache)
    assert not model._kvtier.guesses
    with pytest.warns(UserWarning, match="not built as Llama's"):
        model(input_ids=ids[:, 8:], past_key_values=cache)


def test_a_guess_that_is_not_finite_is_left_out(monkeypatch):
    model = small("Llama")
    adapter.install(model)
    cache = adapter.KvtierCache(ReferenceSequence(3, 2, 16))
    cache.looks_ahead, guesses = True, []

    def refuse(*_):
        guesses.append(1)
        raise kvtier.NotFinite("of this guess")

    monkeypatch.setattr(cache, "_look_ahead", refuse)
    ids = torch.randint(1, 96, (1, 9))
    for part in (ids[:, :7], ids[:, 7:8], ids[:, 8:]):
        model(input_ids=part, past_key_values=cache)
    assert model._kvtier.guesses and len(guesses) == 4  # two layers of two steps


class Asked:
    """A client that keeps what a space is asked for."""

    def open_space(self, **options):
        return options


def add_nothing(model: torch.nn.Module) -> torch.nn.Module:
    """Its layers no longer change what goes through them."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if any(part in name for part in ("o_proj", "dense", "mlp")):
                weights.zero_()
    return model


def keys_of(model: torch.nn.Module, ids: torch.Tensor) -> list[torch.Tensor]:
    cache = transformers.DynamicCache()
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache)
    return [layer.keys[0] for layer in cache.layers]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", PAIRINGS)
def test_keys_turned_back_are_those_before_rotation(family, dtype):
    """As the space is told that they turn, those of the model without its rotation."""
    model = add_nothing(small(family)).to(dtype)
    space = adapter.open_space(Asked(), model)
    pairing, pairs = PAIRINGS[family]
    assert (space["rope_pairing"], len(space["rope_frequencies"])) == (pairing, pairs)
    assert space["rope_positions"] == 512
    ids = torch.randint(1, 96, (1, 400))
    turned = keys_of(model, ids)
    model.base_model.rotary_emb.register_forward_hook(
        lambda _, __, out: (torch.ones_like(out[0]), torch.zeros_like(out[1]))
    )
    plain = keys_of(model, ids)
    angles = torch.arange(400)[:, None] * torch.tensor(space["rope_frequencies"])
    turns = torch.polar(torch.ones(400, pairs), -angles)
    for before, after in zip(plain, turned):
        back = after.float().clone()
        for pair in range(pairs):
            dims = [pair, pair + pairs] if pairing == "halves" else [2 * pair, 2 * pair + 1]
            both = torch.view_as_complex(back[..., dims].contiguous()) * turns[:, pair]
            back[..., dims] = torch.view_as_real(both)
        rounding = 1e-4 if dtype == torch.float32 else 2e-2
        assert float((back - before.float()).norm() / before.float().norm()) < rounding


@pytest.mark.parametrize(
    "family, options",
    [
        ("SmolLM3", {}),  # a layer does not turn its keys
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    ],
)
def test_a_rotation_that_is_not_one_rule_is_not_told(family, options):
    assert "rope_pairing" not in adapter.open_space(Asked(), small(family, **options))


def test_a_rotation_that_no_pairing_explains_is_not_told(monkeypatch):
    from transformers.models.llama import modeling_llama

    model = small("Llama")
    assert adapter.open_space(Asked(), model)["rope_pairing"] == "halves"
    monkeypatch.setattr(modeling_llama, "rotate_half", lambda x: x.roll(3, -1))
    assert "rope_pairing" not in adapter.open_space(Asked(), model)


def test_a_model_that_keeps_no_keys_shows_no_rotation(monkeypatch):
    model = small("Llama")
    forward = model.model.forward
    plain = {"past_key_values": None, "use_cache": False}
    monkeypatch.setattr(model.model, "forward", lambda **given: forward(**given | plain))
    assert "rope_pairing" not in adapter.open_space(Asked(), model)


@pytest.mark.parametrize(
    "family, options",
    [
        ("Gemma", {"head_dim": 16, "use_bidirectional_attention": True}),
        ("Llama", {"is_causal": False}),
    ],
)
def test_models_that_look_both_ways_are_refused(family, options):
    with pytest.raises(NotImplementedError, match="causal attention only"):
        adapter.install(small(family, **options))
    adapter.install(small(family, head_dim=16))  # as its config has it


def test_frequencies_of_another_part_are_not_told():
    model = small("OPT")  # has learned positions
    model.eyes = torch.nn.Module()
    model.eyes.inv_freq = torch.ones(16)  # more than its keys have room for
    assert "rope_pairing" not in adapter.open_space(Asked(), model)


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
