"""Second process of the story: after SIGKILL, the named sequence is there again. No document, no
prefill.

python -m kvtier.story.resume SETTINGS.json
"""

from __future__ import annotations

import gc
import json
import sys
import time
from typing import Any

from . import machine, model as story_model
from .decode import NAME, step
from .progress import Step
from .settings import Settings


class TokenCount:
    """Counts the tokens that the model is run over."""

    def __init__(self, model: Any):
        self.tokens = 0
        model.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: Any, args: tuple, kwargs: dict) -> None:
        self.tokens += kwargs.get("input_ids", args[0] if args else None).shape[1]


def load_whole_cache(settings: Settings, model: Any, token: int) -> tuple[float, str]:
    """The way without kvtier: read the saved cache of the whole context, then one step."""
    import torch
    from transformers import DynamicCache

    dropped = machine.drop_page_cache(settings, [settings.saved_cache])
    start = time.monotonic()
    cache = DynamicCache(config=model.config)
    for index, (keys, values) in enumerate(torch.load(settings.saved_cache, weights_only=True)):
        cache.update(keys, values, index)
    step(model, cache, token)
    return time.monotonic() - start, dropped


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


def main(path: str) -> None:
    settings = Settings.load(path)
    with Step("a new process: loading the model", expected_s=30):
        model, tokenizer = story_model.load(settings.gguf, settings.threads)

    import kvtier

    from .. import transformers as adapter

    room = model.config.max_position_embeddings - max(settings.tokens, settings.answer_tokens)
    questions = [settings.question, settings.second_question]
    first, second = story_model.make_prompts(
        tokenizer, settings.document, questions, room, say=False
    )
    with Step("loading the whole saved cache, one step"):
        others = machine.Others()
        step(model, None, first.question[0])  # warms the model up
        full_load_s, dropped = load_whole_cache(settings, model, first.question[0])
        load = others.load()
    gc.collect()

    adapter.install(model)
    machine.environment(settings, settings.arena_bytes)
    machine.drop_page_cache(settings, [settings.store])
    start = time.monotonic()
    client = kvtier.Client(name="story")
    daemon_start_s = time.monotonic() - start
    pid = machine.daemon_pid(client)
    space = adapter.open_space(client, model, tokenizer, files=[settings.gguf])
    count, private, others = TokenCount(model), machine.private_bytes(), machine.Others(pid)

    with Step(f"kvtier: resuming '{NAME}' and answering"):
        start = time.monotonic()
        cache = adapter.resume(space, NAME, budget=settings.budget)
        attach_s = time.monotonic() - start
        asked = answer(
            model, tokenizer, cache, first.context + first.tail, settings.answer_tokens, count, pid
        )
    # What the process freed meanwhile hides a part: at least what the view counts of its own.
    client_private = max(
        machine.private_bytes() - private, cache.view.stats()["client_bytes"]
    )
    with Step("kvtier: a fork answers another question"):
        start = time.monotonic()
        fork = cache.fork(
            tokens=len(second.context) + len(second.instruction), budget=settings.budget
        )
        fork_s = time.monotonic() - start
        forked = answer(
            model, tokenizer, fork, second.context + second.tail, settings.answer_tokens, count, pid
        )
    counters, disk_parts = machine.daemon_io(pid), machine.disk_parts(settings.store)
    result = {
        "full_load_s": full_load_s,
        "load": max(load, others.load()),
        "daemon_start_s": daemon_start_s,
        "dropped": dropped,
        "found_tokens": asked["found"],
        "resume_s": attach_s + asked["first_answer_s"],
        "kvtier_cold_s": attach_s + asked["first_step_s"],
        "kvtier_ram_s": fork_s + forked["first_step_s"],
        "tokens_forwarded": asked["forwarded"],
        "question_tokens": len(first.question),
        "answer": asked["text"],
        "second_answer": forked["text"],
        "client_private": client_private,
        "read_cold": asked["first_step_read"],
        "read_ram": forked["first_step_read"],
        "disk_bytes": sum(disk_parts.values()),
        "disk_parts": disk_parts,
        "read": counters["read_bytes"],
        "written": counters["write_bytes"],
    }
    fork.close()
    cache.crop(len(first.context))
    cache.close()
    machine.stop_daemon(client)
    settings.result("resume").write_text(json.dumps(result))


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        sys.exit(130)
