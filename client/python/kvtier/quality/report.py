"""The table and the JSON lines."""

from __future__ import annotations

import json
from typing import Any

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


PROBE_COLUMNS = (
    ("text", 14),
    ("engine", 9),
    ("preset", 16),
    ("budget", 6),
    ("probe", 14),
    ("of full's hits", 14),
    ("full", 10),
    ("NLL", 6),
    ("full's", 6),
)


def head(probe: bool = False) -> str:
    columns = PROBE_COLUMNS if probe else COLUMNS
    return "  ".join(f"{name:<{width}}" for name, width in columns).rstrip()


def probe_line(row: dict[str, Any]) -> str:
    cells = (
        row["text"],
        row["engine"],
        row["preset"],
        "" if row["budget"] is None else str(row["budget"]),
        row["probe"],
        f"{row['hits_of_full']} of {row['hits_full']}",
        f"{row['hits_full']} of {row['items']}",
        f"{row['nll']:.3f}",
        f"{row['nll_full']:.3f}",
    )
    return "  ".join(
        f"{cell[:width]:<{width}}" for cell, (_, width) in zip(cells, PROBE_COLUMNS)
    ).rstrip()


def line(row: dict[str, Any]) -> str:
    low, high = row["dppl_pct_low"], row["dppl_pct_high"]
    cells = (
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
        f"{100 * row['steps_waited']:.0f} %",
        f"{row['ms_per_step']:.0f}",
    )
    return "  ".join(
        f"{cell[:width]:<{width}}" for cell, (_, width) in zip(cells, COLUMNS)
    ).rstrip()


EXPLAINED = """
KL: mean divergence from full attention, nats, with its 95 % interval; perplexity: change against
full attention; top-1: tokens whose likeliest successor is the same. device: abstracts and their
tables, resident: slot cache, window and sinks, both over the KV of the context at 16 bit. rows in:
rows entering the slot cache per step and KV head after the first step; waited: layer-steps that
had to wait for a row."""


PROBES_EXPLAINED = """
of full's hits: answers that full attention gives and the preset gives too; full: answers that full
attention gives, of all; NLL: of the true answer's tokens, beside that of full attention."""


def as_json(row: dict[str, Any]) -> str:
    return json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()})
