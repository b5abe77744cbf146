#!/usr/bin/env python3
"""Makes docs/benchmarks.md of kvtier-bench's and the quickstart's JSON, on the machine that measured, and of notes.md beside it.

    build/bin/kvtier-bench all --quick --json bench.json
    tools/quickstart --json quickstart.json
    build/bin/kvtier-bench replay --json replay.json
    .venv/bin/kvtier-quality --decode --json decode.json
    tools/bench/summary.py bench.json [quickstart.json|- [replay.json|- [decode.json]]] > docs/benchmarks.md
"""
import json
import os
import pathlib
import platform
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
DISKS = {"vd": "virtio disk", "nv": "NVMe disk", "sd": "SCSI or SATA disk", "dm": "mapped disk"}


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        fields = [line.split(":", 1) for line in file if ":" in line]
    found = {name.strip(): value.strip() for name, value in fields}
    return f"{found.get('model name', 'unknown processor')} (family {found.get('cpu family', '?')}, model {found.get('model', '?')})"


def disk():
    """Kind of disk and file system of the current folder."""
    device, system, best = "?", "?", ""
    with open("/proc/mounts", encoding="utf-8") as file:
        for line in file:
            source, target, kind = line.split()[:3]
            if os.getcwd().startswith(target) and len(target) >= len(best):
                device, system, best = source.rsplit("/", 1)[-1], kind, target
    return f"{DISKS.get(device[:2], device)}, {system}"


def machine():
    with open("/proc/meminfo", encoding="utf-8") as file:
        memory = int(file.readline().split()[1]) / 2**20
    virtual = ", virtual machine" if "hypervisor" in open("/proc/cpuinfo", encoding="utf-8").read() else ""
    return f"{processor()}, {os.cpu_count()} cores, {memory:.0f} GiB{virtual}; {disk()}; Linux {platform.release().split('-')[0]}"


def commit():
    described = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=False)
    return described.stdout.strip() or "unknown"


def number(value):
    return f"{value:.4g}"


def goal_of(figure):
    if figure["goal"] is None:
        return "", ""
    sign = "≤" if figure["better"] == "lower" else "≥"
    return f"{sign} {figure['goal']:g}", "held" if figure["held"] else "**missed**"


def read_figures(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def busy(figures):
    """A sentence about what else ran: the benchmark itself is a load of 1 to 2."""
    loads = [figure["load"] for figure in figures]
    others = "the machine was quiet" if max(loads) < 3 else "**other programs ran beside it: run it again on a quiet machine**"
    return f"Load average during the run {min(loads):.1f} to {max(loads):.1f}: {others}."


def bench_rows(figures):
    for figure in figures:
        goal, held = goal_of(figure)
        yield (f"| {figure['metric']} | {number(figure['value'])} {figure['unit']} | {number(figure['ceiling'])} {figure['ceiling_name']} "
               f"| {figure['ratio']:.3g} ({figure['ratio_min']:.3g}-{figure['ratio_max']:.3g}) | {goal} | {held} | {figure['n']} "
               f"| `{figure['bench']}` | {figure['note']} |")


def judged(value, bound, form):
    return f"{value:{form}}: goal ≤ {bound}, {'held' if value <= bound else '**missed**'}"


def story_rows(path):
    with open(path, encoding="utf-8") as file:
        story = json.load(file)
    first, tokens = story["first_token_s"], story["tokens_per_s"]
    perplexity, size = story["perplexity"], story["bytes"]
    cold = first["kvtier_cold"]
    yield f"document | {story['document_tokens']} tokens, prefilled in {story['prefill_s']:.1f} s"
    yield f"attach after SIGKILL, page cache cold, to first token at budget {story['budget_tokens']} | {cold:.3f} s; from memory {first['kvtier_ram']:.3f} s"
    yield f"of loading the saved whole cache + 1 step ({first['full_load']:.3f} s) | {judged(cold / first['full_load'], 0.5, '.2f')}"
    yield f"of the prefill | {judged(cold / story['prefill_s'], 0.01, '.4f')}"
    yield f"tokens forwarded on resume | {story['tokens_forwarded_on_resume']}"
    yield f"greedy tokens, budget = all, equal to full attention | {'yes' if story['tokens_equal_budget_all'] else '**no**'}"
    yield f"largest difference of a logit from full attention, budget = all, 128 tokens | {judged(story['details']['logits_apart_budget_all'], 1e-3, '.1e')}"
    yield (f"perplexity, last 128 tokens | full {perplexity['full']:.4f}, all {perplexity['all']:.4f}, "
           f"budget {story['budget_tokens']}: {perplexity['budget']:.4f}")
    yield f"tokens per second | full {tokens['full']:.2f}, all {tokens['all']:.2f}, budget {tokens['budget']:.2f}"
    yield "bytes | " + ", ".join(f"{name} {value / 2**20:.1f} MiB" for name, value in size.items())


def command(path):
    """What makes the figures of this file: not always all that there are."""
    names = dict.fromkeys(figure["bench"] for figure in read_figures(path))
    return f"kvtier-bench {' '.join(names)} --quick"


def print_figures(path):
    figures = read_figures(path)
    print(busy(figures) + "\n")
    print("| figure | value | ceiling or peer | ratio (range) | goal | | rounds | bench | |\n|---|---|---|---|---|---|---|---|---|")
    for row in bench_rows(figures):
        print(row)


def main():
    if len(sys.argv) not in (2, 3, 4, 5):
        sys.exit(__doc__)
    print("# Benchmarks\n")
    print(f"Made by `tools/bench/summary.py`. Machine: {machine()}. Commit {commit()}.\n")
    print((HERE / "notes.md").read_text(encoding="utf-8").strip() + "\n")
    print("## `kvtier-bench all --quick`\n")
    print(f"Made by `{command(sys.argv[1])}`. One figure by itself: `kvtier-bench NAME --quick`, NAME as in the column *bench*.\n")
    print_figures(sys.argv[1])
    if len(sys.argv) > 2 and sys.argv[2] != "-":
        print("\n## `tools/quickstart --json FILE`\n")
        print("| what | measured |\n|---|---|")
        for row in story_rows(sys.argv[2]):
            print(f"| {row} |")
    for title, path in zip(("kvtier-bench replay", "kvtier-quality --decode"), sys.argv[3:]):
        if path != "-":
            print(f"\n## `{title}`\n")
            print_figures(path)


if __name__ == "__main__":
    main()
