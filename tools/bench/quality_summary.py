#!/usr/bin/env python3
"""Tables for docs/retrieval.md of what kvtier-quality measured: means over the texts, where there are several.

    .venv/bin/kvtier-quality --text prose --text code --text dialogue --preset codes,quest --budget 1024,256 --json rows.jsonl
    .venv/bin/kvtier-quality --needles --tasks --preset codes,quest --budget 512 --json answers.jsonl
    tools/bench/quality_summary.py rows.jsonl answers.jsonl
"""
import json
import sys

KINDS = ("needles", "tasks")


def interval(row, name, form):
    return f"{row[name]:{form}} [{row[name + '_low']:{form}}, {row[name + '_high']:{form}}]"


def of_all_texts(rows):
    return [row for row in rows if row["text"] in ("mean", "all")] or rows


def head(*columns):
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))


def divergences(rows):
    head("preset", "budget", "KL", "perplexity, %", "top-1", "abstracts, % of KV", "rows in, % of budget", "choices per step")
    for row in sorted(rows, key=lambda row: (-(row["budget"] or 0), row["kl"])):
        of_budget = row.get("rows_entered_of_budget")
        entered = "" if of_budget is None else f"{100 * of_budget:.1f}"
        print(f"| `{row['preset']}` | {row['budget'] or 'all'} | {interval(row, 'kl', '.4f')} | {interval(row, 'dppl_pct', '+.1f')} "
              f"| {row['top1']:.3f} | {100 * row['device_bytes_ratio']:.1f} | {entered} | {row['selections_per_step']:.2f} |")


def answers(rows):
    """Each probe: answers that both give, of those that full attention gives; its score where it is below a half."""
    kinds = [kind for kind in KINDS if kind in rows[0]]
    names = list(rows[0]["probes"])
    columns = [f"{kind}: {what}" for kind in kinds for what in ("kept", "NLL")]
    head("preset", "budget", *columns, *names)
    for row in sorted(rows, key=lambda row: (-(row["budget"] or 0), -sum(row[kind]["share_of_full"] for kind in kinds))):
        cells = [f"`{row['preset']}`", str(row["budget"] or "all")]
        for kind in kinds:
            cells += [f"{row[kind]['share_of_full']:.3f}", f"{row[kind]['nll_change']:+.3f}"]
        for name in names:
            one = row["probes"][name]
            judged = name in row[one["kind"]]["judged"]
            cells.append(f"{one['hits_of_full']} of {one['hits_full']}" + ("" if judged else f" ({one['items']} asked)"))
        print("| " + " | ".join(cells) + " |")


def main():
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    rows = []
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            rows += [json.loads(line) for line in file]
    tables = [(divergences, [row for row in rows if "kl" in row]), (answers, [row for row in rows if "probes" in row])]
    shown = 0
    for table, of in tables:
        if of:
            print("\n" * (shown > 0), end="")
            table(of_all_texts(of))
            shown += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
