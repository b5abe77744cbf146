#!/usr/bin/env python3
"""A table for docs/retrieval.md of what kvtier-quality measured: means over the texts, where there are several.

    .venv/bin/kvtier-quality --text prose --text code --text dialogue --preset codes,quest --budget 1024,256 --json rows.jsonl
    tools/bench/quality_summary.py rows.jsonl
"""
import json
import sys


def interval(row, name, form):
    return f"{row[name]:{form}} [{row[name + '_low']:{form}}, {row[name + '_high']:{form}}]"


def main():
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    with open(sys.argv[1], encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [row for row in rows if "kl" in row]
    rows = [row for row in rows if row["text"] == "mean"] or rows
    print("| preset | budget | KL | perplexity, % | top-1 | abstracts, % of KV | rows in, % of budget | choices per step |")
    print("|---|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (-(row["budget"] or 0), row["kl"])):
        of_budget = row.get("rows_entered_of_budget")
        entered = "" if of_budget is None else f"{100 * of_budget:.1f}"
        print(f"| `{row['preset']}` | {row['budget'] or 'all'} | {interval(row, 'kl', '.4f')} | {interval(row, 'dppl_pct', '+.1f')} "
              f"| {row['top1']:.3f} | {100 * row['device_bytes_ratio']:.1f} | {entered} | {row['selections_per_step']:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
