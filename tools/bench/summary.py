#!/usr/bin/env python3
"""Makes docs/benchmarks.md of kvtier-bench's and the quickstart's JSON.

    build/bin/kvtier-bench all --quick --json bench.json
    tools/quickstart --json quickstart.json
    tools/bench/summary.py bench.json [quickstart.json] > docs/benchmarks.md
"""
import json
import os
import platform
import subprocess
import sys


def machine():
    model = "?"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    with open("/proc/meminfo", encoding="utf-8") as file:
        memory = int(file.readline().split()[1]) / 2**20
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}"


def commit():
    return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False).stdout.strip()


def number(value):
    return f"{value:.4g}"


def bench_rows(path):
    with open(path, encoding="utf-8") as file:
        for line in file:
            figure = json.loads(line)
            sign = "≤" if figure["better"] == "lower" else "≥"
            goal = f"{sign} {figure['goal']:g}" if figure["goal"] else "–"
            held = "–" if not figure["goal"] else ("held" if figure["held"] else "**missed**")
            yield (f"| {figure['metric']} | {number(figure['value'])} {figure['unit']} | {number(figure['ceiling'])} "
                   f"{figure['ceiling_name']} | {figure['ratio']:.3f} | {goal} | {held} | {figure['n']} | {figure['note']} |")


def story_rows(path):
    with open(path, encoding="utf-8") as file:
        story = json.load(file)
    first, tokens = story["first_token_s"], story["tokens_per_s"]
    perplexity, size = story["perplexity"], story["bytes"]
    yield f"| document | {story['document_tokens']} tokens, prefilled in {story['prefill_s']:.1f} s |"
    yield (f"| attach after SIGKILL, cold, to first token | {first['kvtier_cold']:.3f} s; from memory {first['kvtier_ram']:.3f} s; "
           f"loading the saved whole cache + 1 step {first['full_load']:.3f} s: ratio {first['kvtier_cold'] / first['full_load']:.2f} (goal ≤ 0.5); "
           f"of prefill {first['kvtier_cold'] / story['prefill_s']:.4f} (goal ≤ 0.01) |")
    yield f"| tokens forwarded on resume | {story['tokens_forwarded_on_resume']} |"
    yield f"| greedy tokens, budget = all, equal to full attention | {'yes' if story['tokens_equal_budget_all'] else 'NO'} |"
    yield (f"| perplexity, last 128 tokens | full {perplexity['full']:.4f}, all {perplexity['all']:.4f}, "
           f"budget {story['budget_tokens']}: {perplexity['budget']:.4f} |")
    yield f"| tokens per second | full {tokens['full']:.2f}, all {tokens['all']:.2f}, budget {tokens['budget']:.2f} |"
    yield "| bytes | " + ", ".join(f"{name} {value / 2**20:.1f} MiB" for name, value in size.items()) + " |"


def main():
    print("# Benchmarks\n")
    print(f"Made by `tools/bench/summary.py` on: {machine()}; commit {commit()}.\n")
    print("Every figure stands beside its ceiling or peer, measured in the same run, in turn; medians. This machine is a small virtual one whose\n"
          "disk swings fourfold from one second to the next (see the row of fio against fio): read the ratios, and those of the disk with care.\n")
    print("## `kvtier-bench all --quick`\n")
    print("| figure | value | ceiling or peer | ratio | goal | | pairs | |\n|---|---|---|---|---|---|---|---|")
    for row in bench_rows(sys.argv[1]):
        print(row)
    if len(sys.argv) > 2:
        print("\n## `tools/quickstart --json FILE`\n")
        print("| what | measured |\n|---|---|")
        for row in story_rows(sys.argv[2]):
            print(row)


if __name__ == "__main__":
    main()
