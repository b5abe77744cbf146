"""kvtier-quality --tune KL: the cheapest preset and budget that keep the divergence from full
attention below a bound, and the profile that a model's views then use (docs/retrieval.md).

Of each preset the least budget that holds the bound is looked for, by halving the list of budgets:
more rows never make a selection worse, but for noise below the bound's own. Then the one with the
least memory wins: abstracts, slot cache, window, sinks. Through the daemon, over every text.
"""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import daemon, run
from .model import Judge

Row = dict[str, Any]
BUDGETS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
PRESETS = ("codes", "clusters")


def cost(row: Row) -> float:
    """Bytes that the device must hold, over the KV at 16 bit."""
    return row["device_bytes_ratio"] + row["resident_bytes_ratio"]


def least(
    budgets: list[int], bound: float, measure: Callable[[int], Row]
) -> tuple[Row | None, list[Row]]:
    """(the row of the least budget, ascending ones, that keeps the bound; all that were measured).
    None where even the largest does not."""
    seen = []
    best, low, high = None, 0, len(budgets) - 1
    # The largest first: a preset that cannot hold the bound is done with after one measurement.
    at = high
    while low <= high:
        row = measure(budgets[at])
        seen.append(row)
        if row["kl"] <= bound:
            best, high = row, at - 1
        else:
            low = at + 1
        at = (low + high) // 2
    return best, seen


def tune(plan: run.Plan, judge: Judge, bound: float) -> Iterator[Row]:
    """Every measured row (a mean where there are several texts), with "holds": KL <= bound."""
    with daemon.Daemon() as own:
        measure_with = run.prepare(plan, judge, own)
        for name in plan.presets:

            def measure(budget: int) -> Row:
                rows = list(measure_with(name, budget))
                mean = list(run.means(rows))[0] if len(rows) > 1 else rows[0]
                return mean | {"holds": mean["kl"] <= bound}

            try:
                _, seen = least(sorted(plan.budgets), bound, measure)
            except daemon.NotThere as error:
                run.left_out(plan, error)
                continue
            yield from seen


def choose(rows: list[Row]) -> Row | None:
    held = [row for row in rows if row["holds"]]
    return min(held, key=cost) if held else None


def profile_text(judge: Judge, plan: run.Plan, bound: float, best: Row) -> str:
    from ..model_space import fingerprint

    names = {"model": fingerprint(judge.model, judge.tokenizer, judge.files)}
    if judge.files:
        names["also"] = fingerprint(judge.model, judge.tokenizer)
    measured = {
        "kl": round(best["kl"], 6),
        "kl_bound": bound,
        "perplexity_percent": round(best["dppl_pct"], 3),
        "top1": round(best["top1"], 4),
        "bytes_of_the_kv": round(cost(best), 4),
        "texts": ", ".join(text.name for text in plan.texts),
        "context": round(best["context"]),
        "on": datetime.date.today().isoformat(),
    }
    lines = ["# Made by kvtier-quality --tune. Views of this model without a preset take this one."]
    lines += [f"{key} = {json.dumps(value)}" for key, value in names.items()]
    preset = daemon.preset_of(judge, best["preset"])
    lines += [f"preset = {json.dumps(preset)}", f"budget = {best['budget']}", ""]
    lines += ["[measured]"] + [f"{key} = {json.dumps(value)}" for key, value in measured.items()]
    return "\n".join(lines) + "\n"


def folder_of_profiles() -> Path:
    import kvtier

    presets = kvtier.presets()["directory"]
    if not presets:
        raise FileNotFoundError(2, "HOME is not set", "profiles")
    return Path(presets).parent / "profiles"


def not_writable() -> str | None:
    """Why no profile could be written, by trying, or None: asked before minutes of measuring."""
    folder = Path("profiles")
    try:
        folder = folder_of_profiles()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        return f"no profile can be written into {folder}: {error.strerror}"


def write_profile(text: str) -> Path:
    """Takes the place of every profile that names this model."""
    import kvtier

    head = [line.partition(" = ") for line in text.partition("[measured]")[0].splitlines()]
    told = {key: json.loads(value) for key, _, value in head if value}  # tomllib is 3.11's
    names = {told["model"], told.get("also", told["model"])}
    listed = kvtier.presets()
    folder = folder_of_profiles()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{told['model'][:32]}.toml"
    fresh = path.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
    for profile in listed["profiles"]:
        if names & {profile.get("model"), profile.get("also")} and Path(profile["from"]) != path:
            Path(profile["from"]).unlink(missing_ok=True)
    return path
