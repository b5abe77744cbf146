"""The figures of a run as JSON, as a table and as a picture."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

from . import machine
from .settings import Settings


def figures(settings: Settings, decode: dict[str, Any], resume: dict[str, Any]) -> dict[str, Any]:
    full, everything, budget = decode["full"], decode["all"], decode["budget"]
    return {
        "document_tokens": decode["document_tokens"],
        "prefill_s": everything["prefill_s"],
        "resume_s": resume["resume_s"],
        "tokens_forwarded_on_resume": resume["tokens_forwarded"],
        "first_token_s": {
            "full_load": resume["full_load_s"],
            "kvtier_cold": resume["kvtier_cold_s"],
            "kvtier_ram": resume["kvtier_ram_s"],
        },
        "tokens_equal_budget_all": full["tokens"] == everything["tokens"],
        "perplexity": {
            "full": full["perplexity"],
            "all": everything["perplexity"],
            "budget": budget["perplexity"],
        },
        "budget_tokens": settings.budget,
        "bytes": {
            "device": 0,  # this build has no GPU tier
            "host": budget["host_bytes"],
            "disk": resume["disk_bytes"],
            "read": everything["read"] + budget["read"] + resume["read"],
            "written": everything["written"] + budget["written"] + resume["written"],
            "read_during_decode": budget["read_during_decode"],
            "client_private": resume["client_private"],
        },
        "tokens_per_s": {
            "full": full["tokens_per_s"],
            "all": everything["tokens_per_s"],
            "budget": budget["tokens_per_s"],
        },
        "load": max(part["load"] for part in (full, everything, budget, resume)),
        "details": {
            "cores": os.cpu_count(),
            "logits_apart_budget_all": everything["logits_apart"],
            "kv_bytes": full["kv_bytes"],
            "saved_cache_bytes": full["saved_bytes"],
            "parameters": decode["parameters"],
            "host_arena_bytes": decode["arena_bytes"],
            "context_tokens": decode["context_tokens"],
            "prefill_tokens": everything["prefill_tokens"],
            "full_prefill_s": full["prefill_s"],
            "daemon_start_s": resume["daemon_start_s"],
            "full_load_by": resume["full_load_by"],
            "turns": resume["turns"],
            "first_token_read": {
                "kvtier_cold": resume["read_cold"],
                "kvtier_ram": resume["read_ram"],
            },
            "found_by_tokens": budget["found_by_tokens"],
            "committed_tokens": budget["committed_tokens"],
            "resumed_tokens": resume["found_tokens"],
            "question_tokens": resume["question_tokens"],
            "greedy_tokens": len(full["tokens"]),
            "scored_tokens": settings.scored_tokens,
            "page_cache": resume["dropped"],
            "disk_parts": resume["disk_parts"],
            "killed_pid": budget["killed_pid"],
            "view": budget["view"],
            "answer": resume["answer"],
            "second_answer": resume["second_answer"],
        },
    }


PAGE_CACHE = {
    machine.WHOLE_CACHE_DROPPED: "before, the machine's whole page cache was dropped",
    machine.FILES_DROPPED: "before, the story's files were dropped from the page cache; "
    "all of it only root can drop",
}


def busy(f: dict[str, Any]) -> list[str]:
    """What is to be said where others took more than a quarter of the processors from a part."""
    load, cores = f["load"], f["details"]["cores"]
    if load <= cores / 4:
        return []
    return [
        f"The machine was busy (load {load:.1f} of other programs on {cores} cores): the times are "
        "not to be trusted."
    ]


def mb(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def table(settings: Settings, f: dict[str, Any]) -> str:
    d, first, size = f["details"], f["first_token_s"], f["bytes"]
    equal = "the same" if f["tokens_equal_budget_all"] else "NOT the same"
    rows = [
        ("the document", f"{f['document_tokens']:,} tokens, {mb(d['kv_bytes'])} of KV"),
        (
            "reading and storing it",
            f"{f['prefill_s']:.1f} s for {d['prefill_tokens']:,} tokens "
            f"(plain transformers: {d['full_prefill_s']:.1f} s, one pass over all)",
        ),
        ("", ""),
        (
            "after kill -9: tokens that were there again",
            f"{d['resumed_tokens']:,} of {d['committed_tokens']:,}",
        ),
        (
            "  tokens computed before the answer",
            f"{f['tokens_forwarded_on_resume']} (the question has {d['question_tokens']})",
        ),
        ("  attach, read all of the question, first word of the answer", f"{f['resume_s']:.2f} s"),
        (
            "first token (one step at the document's end): whole saved cache",
            f"{first['full_load']:.2f} s",
        ),
        ("  kvtier, from disk", f"{first['kvtier_cold']:.2f} s"),
        ("  kvtier, from memory (a fork)", f"{first['kvtier_ram']:.2f} s"),
        ("", ""),
        (f"{d['greedy_tokens']} greedy tokens, kvtier with all rows", f"{equal} as full attention"),
        (
            f"  largest difference of a logit, {settings.scored_tokens} tokens",
            f"{f['details']['logits_apart_budget_all']:.1e}",
        ),
        (
            "perplexity: full / all rows / " + f"{f['budget_tokens']:,} rows",
            " / ".join(f"{f['perplexity'][k]:.3f}" for k in ("full", "all", "budget")),
        ),
        (
            "tokens per second: full / all / budget",
            " / ".join(f"{f['tokens_per_s'][k]:.1f}" for k in ("full", "all", "budget")),
        ),
        ("", ""),
        (
            "bytes: in the host arena / on disk",
            f"{mb(size['host'])} of {mb(d['host_arena_bytes'])} / {mb(size['disk'])}",
        ),
        ("bytes: read / written by the daemon", f"{mb(size['read'])} / {mb(size['written'])}"),
        ("bytes read from disk while decoding on the budget", mb(size["read_during_decode"])),
        ("private memory of the client beside the model", mb(size["client_private"])),
    ]
    width = max(len(left) for left, _ in rows)
    lines = [f"  {left:<{width}}  {right}".rstrip() for left, right in rows]
    lines += ["", *("  " + text for text in busy(f)), *explained(settings, f)]
    lines += [
        "",
        f"  Q: {settings.question}",
        f"  A: {d['answer']}",
        f"  Q: {settings.second_question} (in a fork)",
        f"  A: {d['second_answer']}",
        f"  (A model of {d['parameters'] / 1e6:,.0f} M parameters: that it goes on is kvtier's, "
        "what it says its own.)",
    ]
    return "\n".join(lines)


def explained(settings: Settings, f: dict[str, Any]) -> list[str]:
    """What the table's words and numbers mean, with the numbers of this run."""
    d = f["details"]
    parts = d["disk_parts"]
    named = {name: parts.get(name, 0) for name in ("segments", "logs", "catalogue")}
    codes = parts.get("sidecars", 0) + parts.get("codebooks", 0)
    notes = [
        f"{d['prefill_tokens']:,} tokens: the document and the model's chat header "
        f"({d['context_tokens'] - f['document_tokens']}), without the last {d['scored_tokens']}, "
        "which are scored one by one.",
        f"{d['committed_tokens']:,} tokens: header, document and the instruction behind it "
        f"({d['committed_tokens'] - d['context_tokens']}).",
        "First token: attach and one step of the model. The answer's first word comes when all "
        f"{d['question_tokens']} tokens of the question are read.",
        f"From disk: {PAGE_CACHE[d['page_cache']]}. Whole saved cache and from disk: medians of "
        f"{len(d['turns']['cold_s'])} in turn, each after kill -9; the saved cache is read by "
        f"{d['full_load_by']}, the faster of torch and safetensors.",
        f"Budget: the arena is {mb(d['host_arena_bytes'])} on purpose, less than the KV, so that "
        "rows have to come from disk, many of them again and again.",
        f"On disk: segments {mb(named['segments'])} (document, answers, forks: each seals what it "
        f"adds), tail logs {mb(named['logs'])} (until they are sealed), codes {mb(codes)}, "
        f"catalogue {mb(named['catalogue'])} (most of it room that RocksDB takes ahead while the "
        f"daemon runs). Together {f['bytes']['disk'] / d['kv_bytes']:.2f} times the KV: the longer "
        "the document, the nearer to 1.",
    ]
    first, read = f["first_token_s"], d["first_token_read"]["kvtier_cold"]
    if first["kvtier_ram"] >= first["kvtier_cold"]:
        notes.append(
            f"From memory was no faster than from disk: only {mb(read)} had to be read. Either way "
            "the first step computes and copies the chosen rows into the client, and what that "
            "takes differs from run to run."
        )
    if settings.budget >= f["document_tokens"]:
        notes.append(
            f"The budget, {settings.budget:,} rows, is no less than the document: all rows are "
            "attended, and nothing is chosen."
        )
    return [
        line
        for note in notes
        for line in textwrap.wrap(note, 98, initial_indent="  - ", subsequent_indent="    ")
    ]


def picture(f: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    ways, colours = ["full", "all", "budget"], ["#8a8f98", "#3b76af", "#e1812c"]
    names = ["full attention", "kvtier,\nall rows", f"kvtier,\n{f['budget_tokens']:,} rows"]
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    figure.suptitle(
        f"kvtier: {f['document_tokens']:,} tokens of context, kept through kill -9", fontsize=14
    )

    for text in busy(f):
        figure.supxlabel(text, fontsize=11, color="#b3261e")

    first = f["first_token_s"]
    bars = [
        ("prefill again", f["details"]["full_prefill_s"], "#8a8f98"),
        ("load whole cache", first["full_load"], "#8a8f98"),
        ("kvtier, from disk", first["kvtier_cold"], "#3b76af"),
        ("kvtier, from memory", first["kvtier_ram"], "#3b76af"),
    ]
    _bars(axes[0][0], "First token, one step at the document's end (s, log.)", bars, "{:.2f} s")
    axes[0][0].set_xscale("log")
    values = [value for _, value, _ in bars]
    axes[0][0].set_xlim(min(values) / 3, max(values) * 6)
    # Ticks at 1, 3, 10, ... as plain numbers: a short text's times may span no power of ten.
    axes[0][0].xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
    axes[0][0].xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    axes[0][0].xaxis.set_minor_locator(ticker.NullLocator())

    size = f["bytes"]
    bars = [
        ("the context's KV", f["details"]["kv_bytes"] / 1e6, "#8a8f98"),
        ("on disk", size["disk"] / 1e6, "#3b76af"),
        ("host arena\n(small on purpose)", size["host"] / 1e6, "#3b76af"),
        ("client, private", size["client_private"] / 1e6, "#e1812c"),
        ("read while decoding\n(again and again)", size["read_during_decode"] / 1e6, "#e1812c"),
    ]
    _bars(axes[0][1], "Bytes by tier (MB)", bars, "{:,.0f} MB")

    bars = [(n, f["perplexity"][w], c) for n, w, c in zip(names, ways, colours)]
    _bars(
        axes[1][0],
        f"Perplexity, last {f['details']['scored_tokens']} tokens (lower is better)",
        bars,
        "{:.3f}",
    )
    bars = [(n, f["tokens_per_s"][w], c) for n, w, c in zip(names, ways, colours)]
    _bars(axes[1][1], "Tokens per second", bars, "{:.1f}")
    figure.savefig(path, dpi=120)


def _bars(axis: Any, title: str, bars: list[tuple[str, float, str]], form: str) -> None:
    names, values, colours = zip(*bars)
    drawn = axis.barh(range(len(bars)), values, color=colours)
    axis.set_yticks(range(len(bars)), names)
    axis.invert_yaxis()
    axis.bar_label(drawn, [form.format(v) for v in values], padding=4)
    axis.set_title(title, loc="left", fontsize=11)
    axis.margins(x=0.2)
    axis.spines[["top", "right"]].set_visible(False)
