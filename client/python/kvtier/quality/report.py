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


def head() -> str:
    return "  ".join(f"{name:<{width}}" for name, width in COLUMNS)


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


def as_json(row: dict[str, Any]) -> str:
    return json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()})
