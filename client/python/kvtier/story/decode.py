"""First process of the story: the document goes in, and the model goes on three ways. Ends by
killing the daemon.

python -m kvtier.story.decode SETTINGS.json
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import time
from typing import Any

from . import machine, model as story_model
from .progress import Step
from .settings import Settings

NAME = "document"


def negative_log_likelihood(logits: Any, token: int) -> float:
    return -float(logits.reshape(-1).float().log_softmax(-1)[token])


def step(model: Any, cache: Any, token: int) -> Any:
    """One token through the model: logits after it."""
    import torch

    with torch.inference_mode():
        return model(
            input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True
        ).logits[0, -1]


def greedy(
    model: Any, cache: Any, logits: Any, count: int, progress: Step
) -> tuple[list[int], float]:
    """`count` tokens from `logits` on, the end of the answer or not, and tokens per second."""
    tokens: list[int] = []
    start = time.monotonic()
    for i in range(count):
        tokens.append(int(logits.argmax()))
        logits = step(model, cache, tokens[-1])
        progress(i + 1, count)
    return tokens, count / (time.monotonic() - start)


def score(
    model: Any,
    cache: Any,
    ids: list[int],
    first: int,
    logits: Any,
    progress: Step,
    full: Any = None,
) -> tuple[float, float]:
    """Perplexity of ids[first:], one step each; `logits`: after ids[first - 1]. And the largest
    difference of any logit from `full`, those of full attention from there on."""
    total, apart = 0.0, 0.0
    for i in range(first, len(ids)):
        if full is not None:
            apart = max(apart, float((logits.reshape(-1) - full[i - first]).abs().max()))
        total += negative_log_likelihood(logits, ids[i])
        logits = step(model, cache, ids[i])
        progress(i + 1 - first, len(ids) - first)
    return math.exp(total / (len(ids) - first)), apart


def full_attention(settings: Settings, model: Any, prompt: story_model.Prompt) -> dict[str, Any]:
    """Plain transformers: one forward pass over the document, its whole cache saved in two ways,
    greedy tokens."""
    import torch
    from safetensors.torch import save_file
    from transformers import DynamicCache

    from .. import transformers as adapter

    others = machine.Others()
    cache = DynamicCache(config=model.config)
    context, keep = prompt.context, settings.scored_tokens
    with Step("full attention: reading the document") as progress:
        layers = model.model.layers
        hooks = [
            layer.register_forward_hook(lambda *_, i=i: progress(i + 1, len(layers)))
            for i, layer in enumerate(layers)
        ]
        with torch.inference_mode():
            logits = model(
                input_ids=torch.tensor([context]),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=keep + 1,
            ).logits[0]
        for hook in hooks:
            hook.remove()
    total = sum(
        negative_log_likelihood(logits[i], context[len(context) - keep + i]) for i in range(keep)
    )
    with Step("full attention: saving the whole cache"):
        pairs = [(layer.keys, layer.values) for layer in cache.layers]
        torch.save(pairs, settings.saved_cache)
        named = {f"{kind}{i}": x for i, pair in enumerate(pairs) for kind, x in zip("kv", pair)}
        save_file(named, settings.saved_tensors)
        for path in (settings.saved_cache, settings.saved_tensors):
            with path.open("rb") as file:
                os.fsync(file.fileno())
    with Step(f"full attention: {settings.tokens} tokens") as decoding:
        after = adapter.prefill(model, cache, context + prompt.tail)
        tokens, rate = greedy(model, cache, after, settings.tokens, decoding)
    return {
        "logits": logits[:keep],
        "perplexity": math.exp(total / keep),
        "tokens": tokens,
        "tokens_per_s": rate,
        "prefill_s": progress.seconds,
        "load": others.load(),
        "saved_bytes": settings.saved_cache.stat().st_size,
        "kv_bytes": sum(k.nbytes + v.nbytes for k, v in pairs),
    }


def everything(
    settings: Settings, model: Any, tokenizer: Any, prompt: story_model.Prompt, full: Any
) -> dict[str, Any]:
    """kvtier, the whole context attended: the document is stored as it is read, then the same
    greedy tokens. `full`: the logits of full attention before the scored tokens."""
    import kvtier

    from .. import transformers as adapter

    machine.environment(settings, settings.arena_bytes)
    client = kvtier.Client(name="story")
    pid = machine.daemon_pid(client)
    others = machine.Others(pid)
    space = adapter.open_space(client, model, tokenizer, files=[settings.gguf])
    first = len(prompt.context) - settings.scored_tokens
    cache = adapter.attach(space, prompt.context, name=NAME)
    with Step("kvtier: reading and storing the document") as reading:
        logits = adapter.prefill(model, cache, prompt.context[:first], progress=reading)
        cache.commit()
    with Step(f"kvtier, all rows: last {settings.scored_tokens} tokens of the document") as scoring:
        perplexity, apart = score(model, cache, prompt.context, first, logits, scoring, full)
    with Step(f"kvtier, all rows: {settings.tokens} tokens in a fork") as decoding:
        fork = cache.fork()
        logits = adapter.prefill(model, fork, prompt.context + prompt.tail)
        tokens, rate = greedy(model, fork, logits, settings.tokens, decoding)
        fork.close()
    cache.close()
    counters, load = machine.daemon_io(pid), others.load()
    machine.stop_daemon(client)
    return {
        "perplexity": perplexity,
        "logits_apart": apart,
        "tokens": tokens,
        "tokens_per_s": rate,
        "prefill_s": reading.seconds,
        "prefill_tokens": first,
        "load": load,
        "read": counters["read_bytes"],
        "written": counters["write_bytes"],
    }


def on_a_budget(
    settings: Settings, model: Any, tokenizer: Any, prompt: story_model.Prompt
) -> dict[str, Any]:
    """kvtier with a row budget and an arena smaller than the KV; leaves a committed tail and kills
    the daemon."""
    import kvtier

    from .. import transformers as adapter

    machine.environment(settings, settings.small_arena_bytes)
    dropped = machine.drop_page_cache(settings, [settings.store])
    client = kvtier.Client(name="story")
    pid = machine.daemon_pid(client)
    others = machine.Others(pid)
    space = adapter.open_space(client, model, tokenizer, files=[settings.gguf])
    first = len(prompt.context) - settings.scored_tokens
    decoded = 0
    with Step(f"kvtier, {settings.budget} rows: last {settings.scored_tokens} tokens") as scoring:
        cache = adapter.attach(
            space, prompt.context[:first], budget=settings.budget
        )  # found by its tokens
        found = cache.length
        before = machine.daemon_io(pid)["read_bytes"]
        logits = adapter.prefill(model, cache, prompt.context[:first])
        perplexity, _ = score(model, cache, prompt.context, first, logits, scoring)
        decoded += machine.daemon_io(pid)["read_bytes"] - before
        cache.close()
    cache = adapter.resume(space, NAME, budget=settings.budget)
    with Step(f"kvtier, {settings.budget} rows: {settings.tokens} tokens in a fork") as decoding:
        fork = cache.fork(budget=settings.budget)
        logits = adapter.prefill(model, fork, prompt.context + prompt.tail)
        before = machine.daemon_io(pid)["read_bytes"]
        tokens, rate = greedy(model, fork, logits, settings.tokens, decoding)
        decoded += machine.daemon_io(pid)["read_bytes"] - before
        stats = dict(fork.view.stats())
        fork.close()
    adapter.prefill(model, cache, prompt.context + prompt.instruction)
    cache.commit()  # these few tokens are in the tail log only when the daemon dies
    committed = cache.length
    resident = client.request({"op": "show", "target": NAME})["bytes_resident"]
    counters, load = machine.daemon_io(pid), others.load()
    machine.kill_daemon(pid)
    return {
        "perplexity": perplexity,
        "tokens": tokens,
        "tokens_per_s": rate,
        "found_by_tokens": found,
        "committed_tokens": committed,
        "read_during_decode": decoded,
        "load": load,
        "read": counters["read_bytes"],
        "written": counters["write_bytes"],
        "dropped": dropped,
        "view": stats,
        "killed_pid": pid,
        "host_bytes": resident,
    }


def main(path: str) -> None:
    settings = Settings.load(path)
    with Step("loading the model", expected_s=30):
        model, tokenizer = story_model.load(settings.gguf, settings.threads)
    room = model.config.max_position_embeddings - max(settings.tokens, settings.answer_tokens)
    questions = [settings.question, settings.second_question]
    prompt, _ = story_model.make_prompts(tokenizer, settings.document, questions, room)
    full = full_attention(settings, model, prompt)
    logits = full.pop("logits")
    gc.collect()

    from .. import transformers as adapter

    adapter.install(model)
    # The arena of the budget's part must not hold the context, or nothing would have to come from
    # the disk.
    settings.small_arena_bytes = min(settings.small_arena_bytes, full["kv_bytes"] // 2)
    result = {
        "document_tokens": prompt.document_tokens,
        "context_tokens": len(prompt.context),
        "full": full,
        "all": everything(settings, model, tokenizer, prompt, logits),
        "budget": on_a_budget(settings, model, tokenizer, prompt),
        "arena_bytes": settings.small_arena_bytes,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    settings.result("decode").write_text(json.dumps(result))
    sys.stderr.flush()
    os._exit(
        0
    )  # at once, as if this process had been killed too: nothing is closed, nothing reconnects


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        sys.exit(130)
