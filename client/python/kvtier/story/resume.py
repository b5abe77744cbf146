"""Second process of the story: after SIGKILL, the named sequence is there again. No document, no
prefill.

python -m kvtier.story.resume SETTINGS.json
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from typing import Any

from . import machine, model as story_model
from .decode import NAME, step
from .progress import Step
from .settings import Settings

ROUNDS = 3  # of the whole saved cache and the resume, in turn: medians are told


class TokenCount:
    """Counts the tokens that the model is run over."""

    def __init__(self, model: Any):
        self.tokens = 0
        model.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: Any, args: tuple, kwargs: dict) -> None:
        self.tokens += kwargs.get("input_ids", args[0] if args else None).shape[1]


def load_whole_cache(settings: Settings, model: Any, token: int, way: str) -> float:
    """Without kvtier: read the saved cache of the whole context, then one step. Seconds."""
    import torch
    from safetensors.torch import load_file
    from transformers import DynamicCache

    gc.collect()  # what is still mapped stays in the page cache
    machine.drop_page_cache(settings, [settings.saved_cache, settings.saved_tensors])
    start = time.monotonic()
    cache = DynamicCache(config=model.config)
    if way == "torch":
        pairs = torch.load(settings.saved_cache, weights_only=True)
    else:
        tensors = load_file(settings.saved_tensors)
        pairs = [(tensors[f"k{i}"], tensors[f"v{i}"]) for i in range(len(cache.layers))]
    for layer, (keys, values) in zip(cache.layers, pairs):
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values  # update() would copy them
    step(model, cache, token)
    return time.monotonic() - start


def answer(
    model: Any, tokenizer: Any, cache: Any, ids: list[int], most: int, count: TokenCount, pid: int
) -> dict[str, Any]:
    """One step first (what a first token costs), then the rest of the prompt, then the answer."""
    from .. import transformers as adapter

    read = machine.daemon_io(pid)["read_bytes"]
    start, before, found = time.monotonic(), count.tokens, cache.length
    step(model, cache, ids[found])
    result: dict[str, Any] = {
        "found": found,
        "first_step_s": time.monotonic() - start,
        "first_step_read": machine.daemon_io(pid)["read_bytes"] - read,
    }
    logits = adapter.prefill(model, cache, ids)
    tokens = [int(logits.argmax())]
    result |= {"first_answer_s": time.monotonic() - start, "forwarded": count.tokens - before}
    while tokens[-1] != tokenizer.eos_token_id and len(tokens) < most:
        tokens.append(int(step(model, cache, tokens[-1]).argmax()))
    return result | {"text": tokenizer.decode(tokens, skip_special_tokens=True).strip()}


def resume(
    settings: Settings, model: Any, tokenizer: Any, ids: list[int], most: int, count: TokenCount
) -> dict[str, Any]:
    """Nobody runs: a daemon is started, the sequence is there again and gives an answer of `most`
    tokens. With `client`, `cache` and `pid`, which stay."""
    import kvtier

    from .. import transformers as adapter

    dropped = machine.drop_page_cache(settings, [settings.store])
    start = time.monotonic()
    client = kvtier.Client(name="story")
    daemon_start_s = time.monotonic() - start
    pid = machine.daemon_pid(client)
    space = adapter.open_space(client, model, tokenizer, files=[settings.gguf])
    private, others = machine.private_bytes(), machine.Others(pid)
    start = time.monotonic()
    cache = adapter.resume(space, NAME, budget=settings.budget)
    attach_s = time.monotonic() - start
    asked = answer(model, tokenizer, cache, ids, most, count, pid)
    return asked | {
        "client": client,
        "cache": cache,
        "pid": pid,
        "dropped": dropped,
        "daemon_start_s": daemon_start_s,
        "resume_s": attach_s + asked["first_answer_s"],
        "cold_s": attach_s + asked["first_step_s"],
        # What the process freed meanwhile hides a part: at least what the view counts of its own.
        "private": max(machine.private_bytes() - private, cache.view.stats()["client_bytes"]),
        "load": others.load(),
    }


def main(path: str) -> None:
    settings = Settings.load(path)
    with Step("a new process: loading the model", expected_s=30):
        model, tokenizer = story_model.load(settings.gguf, settings.threads)

    from .. import transformers as adapter

    room = model.config.max_position_embeddings - max(settings.tokens, settings.answer_tokens)
    questions = [settings.question, settings.second_question]
    first, second = story_model.make_prompts(
        tokenizer, settings.document, questions, room, say=False
    )
    adapter.install(model)
    machine.environment(settings, settings.arena_bytes)
    count = TokenCount(model)
    step(model, None, first.question[0])  # warms the model up
    full: dict[str, list[float]] = {"torch": [], "safetensors": []}
    rounds: list[dict[str, Any]] = []
    loads = []
    for number in range(1, ROUNDS + 1):
        turn = f"{number} of {ROUNDS}"
        with Step(f"whole saved cache, one step ({turn})"):
            others = machine.Others()
            for way, seconds in full.items():
                seconds.append(load_whole_cache(settings, model, first.question[0], way))
            loads.append(others.load())
        gc.collect()
        if rounds:  # as the first found it; the caches stay, for one that closes starts a daemon
            machine.kill_daemon(rounds[-1]["pid"])
        last = number == ROUNDS
        with Step(f"kvtier: resuming{' and answering' if last else ''} ({turn})"):
            most = settings.answer_tokens if last else 1
            ids = first.context + first.tail
            rounds.append(resume(settings, model, tokenizer, ids, most, count))
    asked = rounds[-1]
    client, cache, pid = asked["client"], asked["cache"], asked["pid"]
    with Step("kvtier: a fork answers another question"):
        others, start = machine.Others(pid), time.monotonic()
        fork = cache.fork(
            tokens=len(second.context) + len(second.instruction), budget=settings.budget
        )
        fork_s = time.monotonic() - start
        forked = answer(
            model, tokenizer, fork, second.context + second.tail, settings.answer_tokens, count, pid
        )
        loads.append(others.load())
    counters, disk_parts = machine.daemon_io(pid), machine.disk_parts(settings.store)
    turns = {key: [one[key] for one in rounds] for key in ("resume_s", "cold_s", "daemon_start_s")}
    medians = {key: statistics.median(values) for key, values in (full | turns).items()}
    faster = min(full, key=medians.__getitem__)
    result = {
        "full_load_s": medians[faster],
        "full_load_by": faster,
        "turns": turns | {"full_load_s": full},
        "load": max(*loads, *(one["load"] for one in rounds)),
        "daemon_start_s": medians["daemon_start_s"],
        "dropped": asked["dropped"],
        "found_tokens": asked["found"],
        "resume_s": medians["resume_s"],
        "kvtier_cold_s": medians["cold_s"],
        "kvtier_ram_s": fork_s + forked["first_step_s"],
        "tokens_forwarded": asked["forwarded"],
        "question_tokens": len(first.question),
        "answer": asked["text"],
        "second_answer": forked["text"],
        "client_private": asked["private"],
        "read_cold": asked["first_step_read"],
        "read_ram": forked["first_step_read"],
        "disk_bytes": sum(disk_parts.values()),
        "disk_parts": disk_parts,
        "read": counters["read_bytes"],  # of the last turn's daemon
        "written": counters["write_bytes"],
    }
    fork.close()
    cache.crop(len(first.context))
    cache.close()
    machine.stop_daemon(client)
    settings.result("resume").write_text(json.dumps(result))
    sys.stderr.flush()
    os._exit(0)  # the caches of the turns before: as decode's


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        sys.exit(130)
