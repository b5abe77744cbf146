"""The transformers adapter on the real model, against full attention and against the in-memory
reference."""

from __future__ import annotations

import pytest
import torch
from conftest import PREFILLED
from reference import ReferenceSequence

import kvtier
from kvtier import model_cache, transformers as adapter

TOLERANCE = 1e-3


def step(model, cache, token: int) -> torch.Tensor:
    with torch.inference_mode():
        return model(
            input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True
        ).logits[0, -1]


def greedy(model, cache, ids: list[int], count: int) -> list[int]:
    logits = adapter.prefill(model, cache, ids)
    tokens = [int(logits.argmax())]
    while len(tokens) < count:
        tokens.append(int(step(model, cache, tokens[-1]).argmax()))
    return tokens


def differ(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.reshape(-1) - b.reshape(-1)).abs().max())


def kl(want: torch.Tensor, got: torch.Tensor) -> float:
    return float(
        torch.nn.functional.kl_div(
            got.log_softmax(-1), want.log_softmax(-1), reduction="sum", log_target=True
        )
    )


@pytest.fixture
def model(loaded):
    return loaded[0]


@pytest.fixture
def reference_cache(model):
    config = model.config
    return adapter.KvtierCache(
        ReferenceSequence(config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
    )


def test_the_adapter_is_exact_over_the_reference(model, reference_cache, text_ids, full_logits):
    logits = adapter.prefill(model, reference_cache, text_ids[:100], piece=37)
    assert differ(logits, full_logits[99]) < TOLERANCE
    for i in range(100, 104):
        assert differ(step(model, reference_cache, text_ids[i]), full_logits[i]) < TOLERANCE


def test_prefill_in_pieces_is_full_attention(stored, full_logits):
    assert differ(stored, full_logits[PREFILLED - 1]) < TOLERANCE


def test_a_stored_prefix_is_found_by_tokens_and_not_computed(
    model, model_space, stored, text_ids, full_logits
):
    ran: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda _, __, kwargs: ran.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    cache = adapter.attach(model_space, text_ids[:420])
    found = cache.length
    assert PREFILLED <= found < 420  # a test before this one may have stored more
    logits = adapter.prefill(model, cache, text_ids[:420])
    hook.remove()
    assert ran == [420 - found]
    assert differ(logits, full_logits[419]) < TOLERANCE
    cache.close()


def test_restored_and_fresh_go_on_alike(model, model_space, stored, text_ids, full_logits):
    """Decoding through the view (C++), everything in budget: full attention's logits, and its
    greedy tokens."""
    from transformers import DynamicCache

    cache = adapter.attach(model_space, text_ids[:PREFILLED])
    assert cache.length == PREFILLED - 1  # one token must be left to start from
    for i in range(PREFILLED - 1, PREFILLED + 8):
        assert differ(step(model, cache, text_ids[i]), full_logits[i]) < TOLERANCE
    cache.crop(PREFILLED)
    assert greedy(model, cache, text_ids[: PREFILLED + 1], 12) == greedy(
        model, DynamicCache(config=model.config), text_ids[: PREFILLED + 1], 12
    )
    cache.close()


def test_generate_takes_the_full_prompt(model, model_space, stored, text_ids):
    prompt = torch.tensor(
        [text_ids[:PREFILLED] + text_ids[100:140]]
    )  # goes on as no other test does
    plain = model.generate(prompt, max_new_tokens=8, do_sample=False)
    cache = adapter.attach(model_space, prompt)
    assert cache.length == PREFILLED
    ours = model.generate(prompt, past_key_values=cache, max_new_tokens=8, do_sample=False)
    assert ours.tolist() == plain.tolist()
    cache.close()
    cache = adapter.attach(model_space, prompt)
    helped = adapter.generate(model, cache, prompt, max_new_tokens=8, do_sample=False)
    assert helped.tolist() == plain.tolist()
    cache.close()


def test_a_question_over_stored_rows_is_read_piece_by_piece(
    model, model_space, stored, text_ids, full_logits, monkeypatch
):
    """Many new tokens over more stored rows than one exact pass holds, budget or not: full
    attention's logits."""
    monkeypatch.setattr(model_cache, "READ_TOKENS", 96)
    for view in ({}, {"budget": 64, "sinks": 4, "window": 8}):
        cache = adapter.attach(model_space, text_ids[: PREFILLED + 1], **view)
        cache.crop(PREFILLED)
        reads: list[int] = []
        read = cache._read
        monkeypatch.setattr(cache, "_read", lambda *a: reads.append(a[2]) or read(*a))
        logits = adapter.prefill(model, cache, text_ids[: PREFILLED + 60], piece=40)
        assert differ(logits, full_logits[PREFILLED + 59]) < TOLERANCE
        layers = model.config.num_hidden_layers
        assert sum(reads) == layers * (PREFILLED + PREFILLED + 40) and max(reads) == 96
        cache.close()


def test_a_question_goes_through_a_view_that_chooses_for_blocks(
    model, model_space, stored, text_ids, full_logits, tmp_path
):
    """Full attention's logits where the budget is above what is stored, and only there."""
    preset = tmp_path / "blocks.toml"
    preset.write_text('base = "mean"\nquery = "block"\n')
    for budget, exact in ((4096, True), (64, False)):
        view = {"budget": budget, "sinks": 4, "window": 8, "preset": str(preset)}
        cache = adapter.attach(model_space, text_ids[: PREFILLED + 1], **view)
        cache.crop(PREFILLED)
        logits = adapter.prefill(model, cache, text_ids[: PREFILLED + 60], piece=40)
        assert (differ(logits, full_logits[PREFILLED + 59]) < TOLERANCE) == exact
        config = model.config  # two pieces, each a choice per layer and KV head
        heads = config.num_key_value_heads * config.num_hidden_layers
        assert cache.view.stats()["selections"] == 2 * heads
        cache.close()


def test_fork_and_truncate(model, model_space, stored, text_ids, full_logits):
    cache = adapter.attach(model_space, text_ids[:PREFILLED])
    fork = cache.fork(300)
    assert (fork.length, cache.length) == (300, PREFILLED - 1)
    assert differ(step(model, fork, text_ids[300]), full_logits[300]) < TOLERANCE
    step(model, fork, 5)
    fork.crop(-1)
    assert fork.length == 301
    assert differ(step(model, fork, text_ids[301]), full_logits[301]) < TOLERANCE
    fork.close()
    assert (
        differ(step(model, cache, text_ids[PREFILLED - 1]), full_logits[PREFILLED - 1]) < TOLERANCE
    )
    cache.close()


def test_a_named_sequence_resumes(model, model_space, stored, text_ids, full_logits):
    cache = adapter.resume(model_space, "shared-prefix")
    assert cache.length == PREFILLED
    assert differ(step(model, cache, text_ids[PREFILLED]), full_logits[PREFILLED]) < TOLERANCE
    cache.crop(-1)
    cache.close()


def test_other_tokens_than_the_stored_ones_are_refused(model, model_space, stored, text_ids):
    cache = adapter.attach(model_space, text_ids[:PREFILLED])
    held = cache.length
    other = [*text_ids[:5], text_ids[5] + 1, *text_ids[6 : PREFILLED + 9]]
    with pytest.raises(ValueError, match=rf"{held} tokens, and only the first 5 .*tokens=5"):
        adapter.generate(model, cache, other, max_new_tokens=1)
    with pytest.raises(ValueError, match=rf"all {held - 1} that were .* 1 more: .*crop\(-1\)"):
        adapter.prefill(model, cache, text_ids[: held - 1])
    with pytest.raises(ValueError, match=rf"all that were given, .* start from: .*crop\(-1\)"):
        adapter.generate(model, cache, text_ids[:held], max_new_tokens=1)
    with pytest.raises(ValueError, match="only the first 0 .*: begin a new cache with attach"):
        adapter.generate(model, cache, [text_ids[0] + 1, *text_ids[1:PREFILLED]], max_new_tokens=1)
    empty = adapter.attach(model_space, [text_ids[0] + 1], private=True)
    for some in (cache, empty):
        with pytest.raises(ValueError, match="no tokens: give the whole text"):
            adapter.generate(model, some, [], max_new_tokens=1)
    empty.close()
    assert cache.length == held
    cache.close()


def test_half_precision_rows(client, loaded, text_ids, full_logits):
    """kv_dtype f16: its error is small, measured, and not zero (the option does something)."""
    model, tokenizer, gguf = loaded
    space = adapter.open_space(client, model, tokenizer, files=[gguf], kv_dtype="f16")
    assert space.dtype == "f16"
    cache = adapter.attach(space, text_ids)
    adapter.prefill(model, cache, text_ids[:200], piece=64)
    worst, divergence, same = 0.0, 0.0, 0
    for i in range(200, 216):
        logits = step(model, cache, text_ids[i])
        worst = max(worst, differ(logits, full_logits[i]))
        divergence += kl(full_logits[i], logits) / 16
        same += int(logits.argmax() == full_logits[i].argmax())
    print(
        f"kv_dtype f16 over 16 steps: logits differ by {worst:.4f} at most, "
        f"mean KL {divergence:.2e}, "
        f"{same} of 16 greedy tokens the same"
    )
    assert 1e-6 < worst < 0.15 and divergence < 1e-4 and same >= 15
    cache.close()


def test_a_budget_bounds_rows_and_stays_near(model, model_space, stored, text_ids, full_logits):
    cache = adapter.attach(model_space, text_ids[:PREFILLED], budget=128, sinks=16, window=32)
    for i in range(PREFILLED - 1, PREFILLED + 4):
        logits = step(model, cache, text_ids[i])
    stats = cache.view.stats()
    heads = model.config.num_key_value_heads
    tail = (
        64 + 5
    )  # what is not sealed is always attended: at most what was added here, and the last open block
    assert stats["steps"] == 5 * model.config.num_hidden_layers
    assert stats["rows_attended"] <= stats["steps"] * heads * (128 + 16 + 32 + tail)
    assert 0 <= kl(full_logits[PREFILLED + 3], logits) < 0.5
    cache.close()


def test_a_forward_that_throws_leaves_the_sequence_as_it_was(
    model, model_space, stored, text_ids, full_logits
):
    cache = adapter.attach(model_space, text_ids[:PREFILLED])

    def fail(*_):
        raise RuntimeError("in the middle")

    hook = model.model.layers[7].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        step(model, cache, 11)
    hook.remove()
    assert cache.length == PREFILLED - 1
    assert (
        differ(step(model, cache, text_ids[PREFILLED - 1]), full_logits[PREFILLED - 1]) < TOLERANCE
    )
    cache.close()


def test_other_caches_work_as_before(model, text_ids, full_logits):
    """After install(), a model without a kvtier cache computes what it did: padding masks
    included."""
    padded = torch.tensor([[0] * 5 + text_ids[:20], text_ids[:25]])
    mask = torch.tensor([[0] * 5 + [1] * 20, [1] * 25])
    with torch.inference_mode():
        logits = model(
            input_ids=padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(0)
        ).logits
    assert differ(logits[0, -1], full_logits[19]) < TOLERANCE
    assert differ(logits[1, -1], full_logits[24]) < TOLERANCE


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda m, c: m(input_ids=torch.ones(2, 3, dtype=torch.long), past_key_values=c),
            "batch 2",
        ),
        (
            lambda m, c: m(input_ids=torch.ones(1, 1025, dtype=torch.long), past_key_values=c),
            "at most 1024",
        ),
        (lambda m, c: m(inputs_embeds=torch.zeros(1, 3, 576), past_key_values=c), "input_ids"),
        (
            lambda m, c: m(
                input_ids=torch.ones(1, 3, dtype=torch.long),
                attention_mask=torch.tensor([[0, 1, 1]]),
                past_key_values=c,
            ),
            "padding",
        ),
        (
            lambda m, c: m(
                input_ids=torch.ones(1, 3, dtype=torch.long),
                position_ids=torch.tensor([[4, 5, 6]]),
                past_key_values=c,
            ),
            "position_ids",
        ),
        (
            lambda m, c: m.generate(
                torch.ones(1, 3, dtype=torch.long), num_beams=2, max_new_tokens=2, past_key_values=c
            ),
            "batch",
        ),
    ],
)
def test_what_it_cannot_do_it_says(model, reference_cache, call, words):
    with pytest.raises((ValueError, NotImplementedError), match=words):
        call(model, reference_cache)


SMALL = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@pytest.mark.parametrize(
    "family, options",
    [
        ("Llama", {}),
        ("Llama", {"num_key_value_heads": 6}),
        ("Llama", {"head_dim": 16}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 8}),
        ("Mistral", {"sliding_window": None}),
        ("Phi3", {"pad_token_id": 0}),
        ("Granite", {"attention_multiplier": 0.1}),
        ("Olmo2", {}),
    ],
)
def test_families_of_models(family, options):
    """Small random models of each kind: pieces, then steps, give the logits of plain attention."""
    import transformers

    torch.manual_seed(7)
    config = getattr(transformers, f"{family}Config")(**SMALL | options)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    ids = torch.randint(0, 96, (1, 70))
    with torch.inference_mode():
        want = model(input_ids=ids).logits[0]
        adapter.install(model)
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        cache = adapter.KvtierCache(
            ReferenceSequence(config.num_hidden_layers, config.num_key_value_heads, dim)
        )
        assert differ(adapter.prefill(model, cache, ids[:, :60], piece=23), want[59]) < 1e-4
        for i in range(60, 70):
            assert differ(step(model, cache, int(ids[0, i])), want[i]) < 1e-4
        assert (
            differ(model(input_ids=ids).logits[0], want) < 1e-4
        )  # without a cache it is as it was
    assert cache.length == 70


def test_models_that_do_not_fit_are_refused():
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        use_sliding_window=True,
        sliding_window=16,
        max_window_layers=1,
    )
    with pytest.raises(NotImplementedError, match="sliding"):
        adapter.install(AutoModelForCausalLM.from_config(config))


def test_spaces_differ_by_weights_dtype_and_rope(loaded, client, model_space):
    model, tokenizer, gguf = loaded
    same = adapter.fingerprint(model, tokenizer)
    assert same == adapter.fingerprint(model, tokenizer)
    norm = model.model.norm.weight
    with torch.no_grad():
        norm.add_(1.0)
        changed = adapter.fingerprint(model, tokenizer)
        norm.sub_(1.0)
    assert changed != same
    assert adapter.fingerprint(model, tokenizer, [gguf]) != adapter.fingerprint(model, None, [gguf])
    assert isinstance(model_space, kvtier.Space)


def test_a_model_with_other_attention_is_refused(model, model_space, text_ids):
    """Its layers would attend to the new tokens alone and say nothing."""
    cache = adapter.attach(model_space, text_ids[:8])
    model.set_attn_implementation("sdpa")
    try:
        with pytest.raises(ValueError, match=r"install\(model\) again"):
            adapter.prefill(model, cache, text_ids[:8])
    finally:
        adapter.install(model)
        cache.close()


def test_a_fork_is_read_as_its_source(model, model_space, text_ids):
    cache = adapter.attach(model_space, text_ids[:400], budget=32, sinks=8, preset="mean")
    adapter.prefill(model, cache, text_ids[:400])
    with_budget, everything = cache.fork(300), cache.fork(300, budget=0)
    for fork in (with_budget, everything):
        step(model, fork, text_ids[300])
    kept = [fork.view.stats()["selections"] for fork in (with_budget, everything)]
    assert kept[0] > 0 and kept[1] == 0
    for each in (cache, with_budget, everything):
        each.close()


def test_a_refused_view_leaves_no_sequence_behind(model_space, text_ids):
    for view in ({"preset": "ques"}, {"budget": 1, "sinks": 8}):
        with pytest.raises(kvtier.Error):
            adapter.attach(model_space, text_ids[:300], name="second try", **view)
    cache = adapter.attach(model_space, text_ids[:300], name="second try")
    with pytest.raises(kvtier.NotFound):
        cache.fork(name="forked", preset="ques")
    cache.fork(name="forked").close()
    cache.close()
