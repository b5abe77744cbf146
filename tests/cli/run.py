#!/usr/bin/env python3
"""Golden tests of the command line: run.py BUILD-DIRECTORY [CASE...]

A case is a text file of steps:
    $ kvtier ls                a command, through sh, in a scratch directory of the case
    ? 3                        its exit code, if not 0
    > SOME LINE                its standard output and error, line by line; `*` matches anything; `...` any number of lines
`kvtier`, `kvtierd` and `make_store` are those of the build. Each case has a store and socket of its own ($STORE, $SOCKET) and
no daemon until it starts one; whatever it started is stopped at its end. $TESTS is this folder.
"""
import fnmatch
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent


def parse(path):
    steps = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("$ "):
            steps.append({"command": line[2:], "line": number, "code": 0, "output": []})
        elif line.startswith("? "):
            steps[-1]["code"] = int(line[2:])
        elif line.startswith(">"):
            steps[-1]["output"].append(line[2:])
        elif line and not line.startswith("#"):
            raise ValueError(f"{path}:{number}: a line begins with $, ?, > or #")
    return steps


def matches(expected, actual):
    """Whether the lines match; `...` stands for any number of lines."""
    if not expected:
        return not actual
    if expected[0] == "...":
        return any(matches(expected[1:], actual[i:]) for i in range(len(actual) + 1))
    if not actual:
        return False
    pattern = re.sub(r"\[", "[[]", expected[0])
    return fnmatch.fnmatchcase(actual[0].rstrip(), pattern) and matches(expected[1:], actual[1:])


def run_case(path, build):
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="kvtier-cli."))
    environment = dict(os.environ)
    environment.update(
        TESTS=str(HERE), STORE=str(scratch / "store"), SOCKET=str(scratch / "run" / "kvtierd.sock"), HOME=str(scratch),
        KVTIER_SOCKET=str(scratch / "run" / "kvtierd.sock"), KVTIER_STORE_PATH=str(scratch / "store"),
        KVTIER_DAEMON=str(build / "bin" / "kvtierd"), KVTIER_CONFIG="/dev/null", LC_ALL="C.UTF-8", TZ="UTC",
        KVTIER_HOST_ARENA_BYTES="64MiB", KVTIER_HOST_LEASED_BYTES_PER_CLIENT_MAX="32MiB",
        KVTIER_HOST_ABSTRACTS_BYTES="8MiB", KVTIER_LOG="error",
        PATH=f"{build}/bin:{build}/tests:{os.environ['PATH']}")
    environment.pop("XDG_RUNTIME_DIR", None)
    environment.pop("XDG_DATA_HOME", None)
    environment.pop("XDG_CONFIG_HOME", None)
    problems = []
    try:
        for step in parse(path):
            done = subprocess.run(["sh", "-c", step["command"]], cwd=scratch, env=environment, text=True, timeout=120,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            lines = done.stdout.splitlines()
            if done.returncode != step["code"]:
                problems.append(f"{path.name}:{step['line']}: exit {done.returncode}, expected {step['code']}: {step['command']}\n"
                                + done.stdout)
            elif step["output"] != ["..."] and not matches(step["output"], lines):
                problems.append(f"{path.name}:{step['line']}: {step['command']}\n--- expected\n" + "\n".join(step["output"]) +
                                "\n--- got\n" + done.stdout)
            if problems:
                break
    finally:
        subprocess.run([str(build / "bin" / "kvtier"), "stop"], env=environment, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        shutil.rmtree(scratch, ignore_errors=True)
    return problems


def self_test():
    assert matches(["a*", "..."], ["abc", "x", "y"])
    assert not matches(["a"], ["b"]) and not matches(["a"], ["a", "b"]) and matches(["[x]"], ["[x]"])


def main():
    self_test()
    build = pathlib.Path(sys.argv[1]).resolve()
    wanted = sys.argv[2:]
    failed = 0
    for path in sorted((HERE / "cases").glob("*.txt")):
        if wanted and path.stem not in wanted:
            continue
        problems = run_case(path, build)
        failed += bool(problems)
        print(("FAIL " if problems else "pass ") + path.stem)
        for problem in problems:
            print(problem)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
