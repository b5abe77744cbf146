"""kvtier calibrate, kvtier-quality --calibrate: the codebook that a model's key codes refer to,
made before the first view that needs one would have it trained on whatever is stored by then.

Into the user's own daemon, for the spaces that the transformers adapter opens for the model. The
texts are read as prompts are, one behind the other in one sequence, an equal part of each: the
daemon trains on the sequence of the view that asks for it before anything else that the space has
(daemon/codebooks.cc), and so on all of them, at all positions that they reach. The sequence goes
again, also after an error or Ctrl-C. A space that has a codebook keeps it: codes refer to it.

A program that opens its space in a way of its own (another dtype) calls calibrate() itself.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .. import Error, NotFound, presets
from ..story.progress import Step
from . import daemon, model as judges, report, run, texts

PRESET = "codes"
TOKENS_MIN = 256
TOKENS_MAX = 8192  # the daemon samples four segments of 2,048 at least; keys are turned beyond
POLL_S = 0.2
IN_MEMORY = (
    "the codebook is in memory only, because it was made from private sequences or while the "
    "store took no writes: it goes when the daemon stops. To store one: `kvtier stop`, and "
    "calibrate again"
)

Entry = dict[str, Any]  # of the daemon's list of codebooks


class NotMade(Exception):
    """The daemon trained none."""

    status = report.MISS


def calibrate(
    space: Any,
    model: Any,
    tokenizer: Any,
    contents: list[str],
    *,
    preset: str = PRESET,
    context: int | None = None,
) -> Entry:
    """The space's codebook for the preset's key codes, as `kvtier codebooks` shows it, and whether
    it was `made` now, from how many `tokens` of the texts; with `in_memory` it is not on disk."""
    kind = kind_of(preset)
    client = space.client
    with _scratch(space) as sequence:
        target = sequence.id
        number = client.request({"op": "show", "target": target})["space"]

        def find() -> Entry | None:
            return _find(client, number, kind)

        found = find()
        if found is not None and "problem" not in found:
            return found | {"made": False}
        ids = ids_of(model, tokenizer, contents, context)
        with Step(f"reading {len(ids)} tokens to calibrate") as step:
            _read(space, model, sequence, ids, step)
        with Step("training the codebook", expected_s=20):
            found = _train(space, target, preset, find)
        return found | {"made": True, "tokens": len(ids)}


def kind_of(preset: str) -> str:
    """Of the key codes that the preset scores, as the daemon calls it."""
    daemon.check(preset)
    (found,) = presets("" if preset == "default" else preset)["presets"]
    if not found["abstract"].startswith("codes:"):
        names = [p["name"] for p in presets()["presets"] if p["abstract"].startswith("codes:")]
        raise daemon.NotThere(f"{preset} needs no codebook; {', '.join(names)} do")
    return f"{found['abstract']}/{found['partition']}"


def ids_of(model: Any, tokenizer: Any, contents: list[str], context: int | None) -> list[int]:
    """The texts one behind the other, of each an equal part of what is read; what a short one
    leaves goes to the others."""
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or TOKENS_MAX
    if context is not None and context > longest:
        raise run.TooShort(f"--context {context}: the model takes {longest} tokens")
    read = [tokenizer(text, add_special_tokens=False).input_ids for text in contents]
    lengths = parts([len(ids) for ids in read], context or min(longest, TOKENS_MAX))
    joined = [id_ for ids, length in zip(read, lengths) for id_ in ids[:length]]
    if len(joined) < TOKENS_MIN:
        raise run.TooShort(
            f"{len(joined)} tokens to calibrate on; a codebook is made from at least {TOKENS_MIN}: "
            "give more text"
        )
    return joined


def parts(lengths: list[int], room: int) -> list[int]:
    """How much of each is taken."""
    taken = [0] * len(lengths)
    left = len(lengths)
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        taken[i] = min(lengths[i], room // left)
        room -= taken[i]
        left -= 1
    return taken


def _find(client: Any, space: int, kind: str) -> Entry | None:
    """The codebook of this kind, once it is not in training any more."""
    while True:
        listed = client.request({"op": "codebooks"})["codebooks"]
        found = [one for one in listed if (one["space"], one["kind"]) == (space, kind)]
        if not found or found[0]["state"] != "in training":
            return found[0] if found else None
        time.sleep(POLL_S)


@contextmanager
def _scratch(space: Any) -> Iterator[Any]:
    """An empty sequence that goes again, with what it then holds."""
    sequence = space.create(name=f"calibration-{os.getpid()}")
    client, target = space.client, sequence.id
    try:
        yield sequence
    finally:
        try:
            with suppress(Error):  # a daemon that is gone
                sequence.close()
        finally:  # also where a second Ctrl-C came while it closed
            _remove(client, target)


def _remove(client: Any, target: int) -> None:
    try:
        client.request({"op": "rm", "target": target})
    except NotFound:  # it had nothing that a daemon keeps
        pass
    except Error as error:
        print(f"the sequence {target} stays, remove it yourself: {error}", file=sys.stderr)


def _read(space: Any, model: Any, sequence: Any, ids: list[int], step: Step) -> None:
    from .. import transformers as adapter

    adapter.install(model)
    cache = adapter.KvtierCache(sequence, kv_dtype=space.dtype, preset="full")
    # Of every piece a few queries are kept: eight pieces at least, so that they are of all parts.
    piece = max(adapter.OBSERVED_TOKENS, min(adapter.PIECE_TOKENS, len(ids) // 8))
    adapter.prefill(model, cache, ids, piece=piece, progress=step)
    cache.commit()
    cache.close()  # seals what is left


def _train(space: Any, target: int, preset: str, find: Callable[[], Entry | None]) -> Entry:
    """A view that begins has the codebook trained; the first may find that one is there which
    cannot be read, and give it up for the next."""
    problem = "its log says why"
    with space.open(id=target, writable=False) as reader:
        for _ in range(3):
            try:
                reader.view(preset=preset, budget=64).close()
            except Error as error:  # an answer that was too long in coming, too
                problem = str(error)
            found = find()
            if found is not None and "problem" not in found:
                return found
            if found is not None:
                problem = f"the file of the one that was there {found['problem']}"
            time.sleep(POLL_S)
    raise NotMade(f"the daemon made no codebook: {problem}")


# ---- the command ---------------------------------------------------------------------------------


def command(options: argparse.Namespace) -> int:
    """Exit code."""
    try:
        made = _command(options)
    except (OSError, run.TooShort, daemon.NotThere, NotMade, Error) as error:
        if options.json == "-":
            print(report.failure(str(error), report.code_of(error)))
        else:
            print(error, file=sys.stderr)
        asked = isinstance(error, (FileNotFoundError, run.TooShort, daemon.NotThere))
        return 2 if asked else 1
    stored = not any(entry.get("in_memory") for entry in made)
    if options.json is not None:
        told: dict[str, Any] = {"codebooks": made, "ok": stored}
        if not stored:
            told |= {"code": report.READ_ONLY, "error": IN_MEMORY}
        line = json.dumps(told) + "\n"
        sys.stdout.write(line) if options.json == "-" else Path(options.json).write_text(line)
    if not stored and options.json != "-":
        print(IN_MEMORY, file=sys.stderr)
    return 0 if stored else 1


def _command(options: argparse.Namespace) -> list[Entry]:
    import kvtier

    from .. import transformers as adapter

    preset = options.preset or PRESET
    kind_of(preset)  # before a model is loaded
    if options.context is not None and options.context < TOKENS_MIN:
        raise run.TooShort(f"--context {options.context}: at least {TOKENS_MIN} make a codebook")
    given = [texts.find(name) for name in options.text or []] or texts.calibration([])
    client = kvtier.Client(name="calibrate")
    with Step("loading the model", expected_s=20):
        judge = judges.load(options.model, options.threads, dtype="auto")
    preset = daemon.preset_of(judge, preset)  # "default" is that of the model's profile
    kind_of(preset)
    made = []
    # A model of one file is told apart by all of its bytes, or as one of a directory is, by a part
    # of every weight: as the program says that opens the space.
    for files in [judge.files, []] if judge.files else [[]]:
        space = adapter.open_space(client, judge.model, judge.tokenizer, files=files)
        contents = [text.content for text in given]
        made.append(
            calibrate(
                *(space, judge.model, judge.tokenizer, contents),
                preset=preset,
                context=options.context,
            )
        )
        if options.json != "-":
            print(sentence(made[-1]), flush=True)
    return made


def sentence(entry: Entry) -> str:
    said = f"space {entry['space']} (model {entry['model'][:12]}..., {entry['kind']}): "
    said += (
        f"codebook {entry['id']} made from {entry['tokens']} tokens"
        if entry["made"]
        else f"has codebook {entry['id']} already, which stays as it is"
    )
    return (
        f"{said}; {entry['keys_per_head']} keys per head, {entry['query_tokens']} query tokens, "
        f"{entry['positions']} positions, {entry['bytes'] / (1 << 20):.1f} MiB"
    )
