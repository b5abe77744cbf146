"""One forward of the transformers adapter, on small random models: what is refused, what stays
where it threw, how exact it is in 16 bits."""

from __future__ import annotations

import copy
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from reference import ReferenceSequence

import kvtier
from kvtier import model_cache, transformers as adapter

PROMPT = list(range(3, 43))


def forward(model, cache, ids, **options) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids]), past_key_values=cache, **options).logits[0, -1]


@pytest.fixture(scope="module")
def model():
    import transformers

    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    one = transformers.LlamaForCausalLM(config).eval()
    adapter.install(one)
    return one


@pytest.fixture
def cache(model):
    """Holds the first 30 tokens of PROMPT."""
    one = adapter.KvtierCache(ReferenceSequence(3, 2, 16))
    forward(model, one, PROMPT[:30])
    return one


@pytest.mark.parametrize("new", [1, 6])
def test_a_forward_that_throws_in_its_last_layer_is_made_again(model, cache, new, monkeypatch):
    """All its rows are written by then: they go, so that the second call does not add them
    twice."""
    want = forward(model, None, PROMPT[: 30 + new])
    attend, layers = "_attend" if new == 1 else "_exact", []

    def lost(layer, *_):
        layers.append(layer)
        if layer == 2:
            raise kvtier.DaemonLost("in the last layer")
        return done(layer, *_)

    done = getattr(cache, attend)
    with monkeypatch.context() as patch, pytest.raises(kvtier.DaemonLost):
        patch.setattr(cache, attend, lost)
        forward(model, cache, PROMPT[30 : 30 + new])
    assert layers == [0, 1, 2]
    assert cache.get_seq_length() == 30  # generate() asks it how many tokens to leave out
    logits = forward(model, cache, PROMPT[30 : 30 + new])
    assert cache.length == 30 + new and cache.sequence.ids == PROMPT[: 30 + new]
    assert (logits - want).abs().max() < 1e-4


def test_a_call_that_is_refused_keeps_the_tokens_of_the_one_before(model, cache):
    for token in PROMPT[30:32]:
        forward(model, cache, [token])
        with pytest.raises(ValueError, match="batch 2"):
            model(input_ids=torch.tensor([[1], [1]]), past_key_values=cache)
    assert cache.length == cache.get_seq_length() == 32


ORDER = torch.arange(30, 36)[None]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"attention_mask": torch.ones(1, 1, 6, 36, dtype=torch.bool)}, "two dimensions"),
        ({"attention_mask": torch.ones(1, 6, 36)}, "two dimensions"),
        ({"attention_mask": {"full_attention": None}}, "two dimensions"),
        ({"position_ids": torch.tensor([[30, 31, 34, 35, 36, 37]])}, "not 30 to 35"),
        ({"position_ids": torch.tensor([[30, 31, 32, 30, 31, 32]])}, "not 30 to 35"),
        ({"position_ids": torch.stack([ORDER, ORDER, ORDER + 1])}, "not 30 to 35"),
        ({"position_ids": ORDER[:, :1]}, "not 30 to 35"),
        ({"is_causal": False}, "leave is_causal out"),
    ],
)
def test_other_masks_and_positions_are_refused(model, cache, options, words):
    """Rows that were computed with them would be found by their tokens as if they were plain."""
    with pytest.raises(ValueError, match=words):
        forward(model, cache, PROMPT[30:36], **options)
    assert cache.length == 30


def test_attention_that_is_not_plain_is_refused(model, cache, monkeypatch):
    with pytest.raises(NotImplementedError, match="position_bias"):
        forward(model, cache, PROMPT[30:36], position_bias=torch.zeros(1, 4, 6, 6))
    monkeypatch.setattr(model.model.layers[1].self_attn, "is_causal", False)
    with pytest.raises(NotImplementedError, match="causal attention only"):
        forward(model, cache, PROMPT[30:36])
    assert cache.length == 30


def test_a_mask_that_is_not_named_is_refused(model, cache):
    with pytest.raises(ValueError, match="name all but the first"):
        model.model(torch.tensor([[7]]), torch.zeros(1, 1, 1, 31), past_key_values=cache)
    assert cache.length == 30


def test_plain_masks_and_positions_are_taken(model, cache):
    want = forward(model, None, PROMPT[:36])
    for options in (
        {"attention_mask": torch.ones(1, 36)},
        {"attention_mask": torch.ones(1, 6, dtype=torch.long), "position_ids": ORDER},
    ):
        got = forward(model, cache, PROMPT[30:36], **options)
        assert (got - want).abs().max() < 1e-4
        cache.crop(-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"prefill_chunk_size": 4}, {"prompt_lookup_num_tokens": 3}],
)
def test_generate_counts_positions_as_the_cache_does(model, cache, options):
    plain = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    prompt = torch.tensor([[*PROMPT, 3, 4, 5]])
    want = model.generate(prompt, **plain)
    if "prompt_lookup_num_tokens" in options:
        cache.reset()  # transformers would give it all of the prompt once more
    got = model.generate(prompt, past_key_values=cache, **plain, **options)
    assert got.tolist() == want.tolist()


def test_a_cache_that_is_dropped_is_closed(model, client):
    """Without close(), and without a look for cycles: its name is free for the next writer."""
    space = adapter.open_space(client, model)
    cache = adapter.attach(space, PROMPT, name="dropped")
    gc.disable()
    try:
        forward(model, cache, PROMPT)
        forward(model, cache, [7])
        del cache
        again = adapter.resume(space, "dropped")
    finally:
        gc.enable()
    assert again.length == len(PROMPT) + 1
    forward(model, again, [7])
    again.close()


def interrupt(*_, **__):
    raise KeyboardInterrupt


BACKWARDS = PROMPT[::-1]  # which no other test stores


class Interrupted:
    """A sequence at whose append Ctrl-C comes: behind it, or before."""

    def __init__(self, real, begins: bool):
        self.real, self.begins = real, begins

    def __getattr__(self, name):
        return getattr(self.real, name)

    def append(self, *args, **options):
        if self.begins:
            self.real.append(*args, **options)
        raise KeyboardInterrupt


@pytest.mark.parametrize("begins", [True, False])
def test_ctrl_c_while_a_piece_begins_leaves_none(model, client, begins):
    want = forward(model, None, BACKWARDS[:36])
    cache = adapter.attach(adapter.open_space(client, model), BACKWARDS[:1])
    forward(model, cache, BACKWARDS[:30])
    sequence = cache.sequence
    cache.sequence = Interrupted(sequence, begins)
    with pytest.raises(KeyboardInterrupt):
        forward(model, cache, BACKWARDS[30:36])
    cache.sequence = sequence
    assert (forward(model, cache, BACKWARDS[30:36]) - want).abs().max() < 1e-4
    cache.commit()
    assert cache.length == 36
    cache.close()


def test_ctrl_c_in_a_forward_leaves_no_cache_open(model, client):
    space = adapter.open_space(client, model)
    cache = adapter.attach(space, BACKWARDS[:1], name="interrupted")
    forward(model, cache, BACKWARDS[:30])
    with model.model.layers[-1].register_forward_pre_hook(interrupt):
        try:
            forward(model, cache, BACKWARDS[30:36])
            pytest.fail("nothing was thrown")
        except KeyboardInterrupt:
            pass  # goes, and its traceback with it
    del cache
    gc.collect()
    cache = adapter.resume(space, "interrupted")  # Busy where something holds the first
    assert cache.length == 30
    cache.close()


def test_ctrl_c_while_a_view_opens_leaves_no_sequence_behind(model, client, monkeypatch):
    space = adapter.open_space(client, model)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model_cache, "KvtierCache", interrupt)
        adapter.attach(space, BACKWARDS[:1], name="given up")
    adapter.attach(space, BACKWARDS[:1], name="given up").close()


def test_a_forward_in_another_thread_keeps_its_cache(model, cache):
    """open_space runs the model, with another cache."""
    want = forward(model, None, PROMPT[:36])
    inside, go_on = threading.Event(), threading.Event()

    def wait(*_):
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            assert go_on.wait(60)

    with (
        model.model.layers[1].register_forward_pre_hook(wait),
        ThreadPoolExecutor(1) as pool,
    ):
        got = pool.submit(forward, model, cache, PROMPT[30:36])
        try:
            assert inside.wait(60)
            adapter.open_space(SimpleNamespace(open_space=dict), model)
        finally:
            go_on.set()
        assert (got.result() - want).abs().max() < 1e-4
    assert cache.length == 36


def test_a_copy_of_a_model_runs_by_itself(model):
    other = copy.deepcopy(model)
    assert other._kvtier is not model._kvtier
    assert other._kvtier is other.model.layers[0].self_attn._kvtier
    cache = adapter.KvtierCache(ReferenceSequence(3, 2, 16))
    forward(other, cache, PROMPT[:30])
    got = forward(other, cache, PROMPT[30:36])
    assert (got - forward(model, None, PROMPT[:36])).abs().max() < 1e-4


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
        cache._ended(ran=True)
    got = cache._exact(0, q, k[:, :, stored:], v[:, :, stored:], dim**-0.5)
    assert got.dtype == dtype
    want = torch.nn.functional.scaled_dot_product_attention(
        *(x.double() for x in (q, k, v)),
        attn_mask=torch.ones(new, stored + new).tril(stored).bool(),
        enable_gqa=True,
    ).transpose(1, 2)
    error = (got.double() - want).norm() / want.norm()
    assert error < torch.finfo(dtype).eps / 2
