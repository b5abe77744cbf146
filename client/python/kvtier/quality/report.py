"""The table and the JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import Error

Row = dict[str, Any]

COLUMNS = (
    ("text", 14),
    ("engine", 9),
    ("preset", 16),
    ("budget", 6),
    ("KL", 16),
    ("perplexity", 22),
    ("top-1", 6),
    ("device", 7),
    ("resident", 8),
    ("rows in", 8),
    ("waited", 7),
    ("ms/step", 7),
)


@dataclass
class Look:
    """How rows are shown."""

    head: Callable[[Row], str]  # of the first row
    line: Callable[[Row], str]
    explained: str


def head(_: Row) -> str:
    return _cells([name for name, _ in COLUMNS], COLUMNS)


def _cells(cells: list[str], columns: Any) -> str:
    parts = (f"{cell[:width]:<{width}}" for cell, (_, width) in zip(cells, columns))
    return "  ".join(parts).rstrip()


def line(row: Row) -> str:
    low, high = row["dppl_pct_low"], row["dppl_pct_high"]
    cells = [
        row["text"],
        row["engine"],
        row["preset"],
        "" if row["budget"] is None else str(row["budget"]),
        f"{row['kl']:.4f} ±{row['kl_high'] - row['kl']:.4f}",
        f"{row['dppl_pct']:+.1f} % [{low:+.1f}, {high:+.1f}]",
        f"{row['top1']:.3f}",
        f"{100 * row['device_bytes_ratio']:.2f} %",
        f"{100 * row['resident_bytes_ratio']:.1f} %",
        f"{row['rows_entered']:.1f}",
        "" if row.get("steps_waited") is None else f"{100 * row['steps_waited']:.0f} %",
        f"{row['ms_per_step']:.0f}",
    ]
    return _cells(cells, COLUMNS)


EXPLAINED = """
KL: mean divergence from full attention, nats, with its 95 % interval; perplexity: change against
full attention; top-1: tokens whose likeliest successor is the same. device: abstracts and their
tables, over the KV of the context at 16 bit; resident: rows of the slot cache, which has room for
window and sinks, over those of the context (a share of bytes where rows are kept at 16 bit). rows
in: rows entering the slot cache per step and KV head after the first step (the reference counts
low-bit ones, too); waited: layer-steps behind the first that had to wait for a row (the reference
does not say so of low-bit rows)."""
DIVERGENCES = Look(head, line, EXPLAINED)


# ---- needles and tasks ---------------------------------------------------------------------------

PROBE_COLUMNS = (("text", 14), ("engine", 9), ("preset", 16), ("budget", 6))
KIND_COLUMNS = (("kept", 18), ("NLL", 7))


def probe_head(row: Row) -> str:
    """Of a table whose rows have the kinds and the probes of this one."""
    kinds = [f"{kind}: kept" for kind in ("needles", "tasks") if kind in row]
    names = [name for name, _ in PROBE_COLUMNS]
    for kind in kinds:
        names += [kind, "NLL"]
    return _cells([*names, *row["probes"]], _probe_columns(row))


def probe_line(row: Row) -> str:
    budget = "" if row["budget"] is None else str(row["budget"])
    cells = [row["text"], row["engine"], row["preset"], budget]
    for kind in ("needles", "tasks"):
        if kind in row:
            one = row[kind]
            verdict = "held" if one["held"] else "missed"
            cells += [f"{100 * one['share_of_full']:.1f} % {verdict}", f"{one['nll_change']:+.3f}"]
    for one in row["probes"].values():
        cells.append(f"{one['hits_of_full']}/{one['hits_full']}/{one['items']}")
    return _cells(cells, _probe_columns(row))


def _probe_columns(row: Row) -> list[tuple[str, int]]:
    kinds = sum(kind in row for kind in ("needles", "tasks"))
    return [*PROBE_COLUMNS, *(KIND_COLUMNS * kinds), *((name, 11) for name in row["probes"])]


PROBES_EXPLAINED = """
kept: of the answers that full attention gives, those that the preset gives too; the goal is all of
the needles and 95 % of the tasks, mean of those that full attention does by half (three or more).
NLL: of the right answers' tokens, change against full attention. Each probe: answers that both
give / that full attention gives / all."""
ANSWERS = Look(probe_head, probe_line, PROBES_EXPLAINED)


def as_json(row: Row) -> str:
    return json.dumps(_rounded(row))


# Statuses of the C API, which errors have as `code`.
MISS, INVALID, NOT_FOUND, PERMISSION, IO, READ_ONLY = 1, 20, 21, 26, 60, 61


def code_of(error: Exception) -> int:
    if isinstance(error, Error):
        return getattr(error, "code", IO)
    if isinstance(error, (FileNotFoundError, KeyError)):
        return NOT_FOUND
    if isinstance(error, OSError):
        return PERMISSION if isinstance(error, PermissionError) else IO
    return getattr(error, "status", INVALID)


def failure(text: str, code: int, **more: Any) -> str:
    return as_json({"ok": False, "code": code, "error": text} | more)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 6) if isinstance(value, float) else value
