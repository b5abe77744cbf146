"""Two pictures of a run: divergence against what lies on the device, and against what is fetched.

Also from a file of JSON lines: python -m kvtier.quality.plots rows.json DIRECTORY
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

PICTURES = (
    (
        "kl-device.png",
        "device_bytes_ratio",
        "abstracts on the device, % of the KV at 16 bit",
    ),
    (
        "kl-fetched.png",
        "fetched_ratio",
        "rows fetched per step, % of the KV at 16 bit",
    ),
)
LEAST_KL = 1e-5  # what is below lies on the edge: full attention itself


def draw(rows: list[dict[str, Any]], directory: Path) -> list[Path]:
    """Of means over texts where the rows have them. Returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in rows if "kl" in r]
    rows = [r for r in rows if r["text"] == "mean"] or rows
    lines: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["preset"] != "full":
            lines[row["preset"], row["engine"]].append(row)
    engines = sorted({engine for _, engine in lines})
    colours = plt.get_cmap("tab20")
    names = sorted({name for name, _ in lines})
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for file, key, label in PICTURES:
        figure, axes = plt.subplots(figsize=(8, 5.5))
        for (name, engine), points in sorted(lines.items()):
            points = [p for p in points if p.get(key) is not None]
            if not points:
                continue
            points.sort(key=lambda r: r["budget"] or 0)
            x = [100 * p[key] for p in points]
            y = [max(p["kl"], LEAST_KL) for p in points]
            low = [max(v - max(p["kl_low"], LEAST_KL), 0) for v, p in zip(y, points)]
            high = [p["kl_high"] - p["kl"] for p in points]
            axes.errorbar(
                x,
                y,
                yerr=[low, high],
                color=colours(names.index(name) % 20),
                marker="o" if engine == engines[0] else "x",
                linestyle="-" if engine == engines[0] else ":",
                linewidth=1,
                elinewidth=0.6,
                label=name if len(engines) == 1 else f"{name}, {engine}",
            )
            for p, at, value in zip(points, x, y):
                axes.annotate(
                    str(p["budget"] or ""), (at, value), fontsize=7, xytext=(3, 3),
                    textcoords="offset points",
                )
        axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel("mean KL divergence from full attention, nats")
        axes.set_title("numbers: budget in rows per layer and KV head", fontsize=9)
        axes.grid(True, which="both", linewidth=0.3)
        axes.legend(fontsize=7, ncols=2)
        figure.tight_layout()
        figure.savefig(directory / file, dpi=130)
        plt.close(figure)
        files.append(directory / file)
    return files


if __name__ == "__main__":
    source, target = sys.argv[1:]
    lines_of_file = Path(source).read_text().splitlines()
    print(*draw([json.loads(line) for line in lines_of_file], Path(target)), sep="\n")
