#!/usr/bin/env python3
"""Style rules as a test: who may include whom, one door per library, lengths of files and lines, headers that say what they
are for and are guarded, words that are not merged, sources that are in a target.

Run from the repository root: `tests/tidy/tidy.py` checks the tree, `tests/tidy/tidy.py --self-test` checks the rules: each
must catch an example that breaks it.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCE = {".cc", ".h", ".hpp", ".c"}
PYTHON = ("client/python/", "tests/python/")  # the package and its tests: sizes and words
FOLDERS = ["base", "kernels", "tiers", "client", "daemon", "tools", "tests"]

# folder -> what its files may include besides themselves
MAY_INCLUDE = {
    "base": set(),
    "kernels": {"base"},
    "tiers": {"kernels", "base"},
    "client/ipc": {"base"},
    "client": {"client/ipc", "kernels", "base", "kvtier"},
    "daemon": {"tiers", "client/ipc", "kernels", "base"},
    # The CLI is an admin tool of the store: public client headers, the socket, and the format readers.
    "tools": {"client/ipc", "tiers", "kernels", "base", "kvtier", "daemon/version.h"},
    # Benchmarks measure parts of the client by themselves.
    "tools/bench": {"tools", "client", "client/ipc", "tiers", "kernels", "base", "kvtier"},
}

# library -> regular expression of its headers, files that may name them
DOORS = {
    "liburing": (r"liburing", r"tiers/io_uring.*\.cc"),
    "RocksDB": (r"rocksdb/", r"tiers/catalogue(_env)?.*\.(cc|h)"),
    "zstd": (r"zstd", r"tiers/codec\.cc"),
    "xxHash": (r"xxhash", r"base/hash\.cc"),
    "spdlog": (r"spdlog/", r"base/log\.cc"),
    "nlohmann": (r"nlohmann/", r"base/json\.h"),
    "expected": (r"tl/expected", r"base/result\.h"),
    "Asio": (r"boost/asio", r"daemon/control_server\.cc"),
    "toml++": (r"toml", r"base/toml\.cc"),
    "CLI11": (r"CLI/", r"(daemon/main|tools/cli/main|tools/bench/main)\.cc"),
    "Eigen": (r"Eigen/", r"tiers/(codebook_train|low_rank)\.cc"),
    "Highway": (r"hwy/", r"kernels/simd/.*"),
    "nanobind": (r"nanobind/", r"client/python/module.*\.(cc|h)"),
    "GoogleTest": (r"g(test|mock)/", r"tests/.*"),
}

LINES_MAX = 800
COLUMNS_MAX = 100
INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]')


def folder_of(path: str) -> str:
    for part in ("client/ipc", "tools/bench"):
        if path.startswith(part + "/"):
            return part
    return path.split("/")[0]


def target_folder(include: str) -> str | None:
    """The folder of ours that an include names, or None for a library's header."""
    if include.startswith("client/ipc/"):
        return "client/ipc"
    if include.startswith("kvtier/"):
        return "kvtier"
    first = include.split("/")[0]
    return first if first in FOLDERS and "/" in include else None


def check_includes(path: str, text: str) -> list[str]:
    problems = []
    folder = folder_of(path)
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        include = match.group(1)
        for library, (pattern, door) in DOORS.items():
            if re.match(pattern, include) and target_folder(include) is None and not re.fullmatch(door, path):
                problems.append(f"{path}:{number}: {library} has one door ({door}); this is not it")
        target = target_folder(include)
        if folder == "tests" or target is None or target == folder:
            continue
        if folder == "client/ipc" and target == "client/ipc":
            continue
        allowed = MAY_INCLUDE.get(folder, set())
        if target not in allowed and include not in allowed:
            problems.append(f"{path}:{number}: {folder} must not include {include}")
    return problems


def check_sizes(path: str, text: str) -> list[str]:
    problems = []
    lines = text.splitlines()
    if len(lines) > LINES_MAX:
        problems.append(f"{path}: {len(lines)} lines; at most {LINES_MAX}")
    for number, line in enumerate(lines, 1):
        if len(line) > COLUMNS_MAX:
            problems.append(f"{path}:{number}: {len(line)} columns; at most {COLUMNS_MAX}")
    return problems


def check_head(path: str, text: str) -> list[str]:
    """Headers open with a comment, and are guarded."""
    if not path.endswith((".h", ".hpp")):
        return []
    problems = []
    if not text.startswith(("//", "/*")):
        problems.append(f"{path}: a header begins with what it is for")
    # Highway's -inl.h files are read once per target, behind a toggle of their own.
    if not any(guard in text for guard in ("#pragma once", "#ifndef", "HWY_TARGET_TOGGLE")):
        problems.append(f"{path}: no include guard")
    return problems


def check_words(path: str, text: str) -> list[str]:
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"\b(FIXME|XXX|HACK)\b", line) or re.search(r"\bTODO\b(?!\(#\d+\))", line):
            problems.append(f"{path}:{number}: TODO carries an issue number, TODO(#12); FIXME is not merged")
        if re.search(r"\bDISABLED_\w+", line):
            problems.append(f"{path}:{number}: a disabled test")
    return problems


def check_wired(files: dict[str, str], lists: str) -> list[str]:
    """Every source file is named by some CMake list or script."""
    problems = []
    for path in files:
        if not path.endswith((".cc", ".c")):
            continue
        if pathlib.PurePosixPath(path).name not in lists:
            problems.append(f"{path}: in no target")
    return problems


CHECKS = [check_includes, check_sizes, check_head, check_words]


def tree() -> dict[str, str]:
    files = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            relative = path.relative_to(ROOT).as_posix()
            python = path.suffix in {".py", ".pyi"} and relative.startswith(PYTHON)
            if (path.suffix in SOURCE or python) and "/corpus/" not in relative and path.is_file():
                files[relative] = path.read_text(encoding="utf-8")
    return files


def cmake_lists() -> str:
    names = [*ROOT.rglob("CMakeLists.txt"), *ROOT.rglob("*.cmake")]
    return "\n".join(p.read_text() for p in names if p.is_file() and "build" not in p.relative_to(ROOT).parts)


def self_test() -> int:
    bad = {
        "direction": check_includes("tiers/x.cc", '#include "daemon/engine.h"\n'),
        "client knows tiers": check_includes("client/x.cc", '#include "tiers/io.h"\n'),
        "door": check_includes("tiers/segment.cc", "#include <zstd.h>\n"),
        "gtest in product": check_includes("base/x.cc", "#include <gtest/gtest.h>\n"),
        "lines": check_sizes("a.cc", "x\n" * (LINES_MAX + 1)),
        "columns": check_sizes("a.cc", "x" * (COLUMNS_MAX + 1)),
        "head": check_head("a.h", "int x;\n"),
        "todo": check_words("a.cc", "// TO" + "DO later\n"),
        "unwired": check_wired({"tests/unit/lost_test.cc": ""}, "other_test.cc"),
    }
    good = {
        "direction": check_includes("tiers/x.cc", '#include "base/bytes.h"\n#include "kernels/layout.h"\n'),
        "door": check_includes("tiers/codec.cc", "#include <zstd.h>\n"),
        "own": check_includes("client/ipc/ring.cc", '#include "client/ipc/ring.h"\n'),
        "wired": check_wired({"tests/unit/a_test.cc": ""}, "a_test.cc"),
    }
    failed = [f"rule does not catch: {name}" for name, problems in bad.items() if not problems]
    failed += [f"rule is too strict: {name}: {problems}" for name, problems in good.items() if problems]
    for line in failed:
        print(line)
    return 1 if failed else 0


def main() -> int:
    if "--self-test" in sys.argv:
        return self_test()
    files = tree()
    problems = [problem for path, text in files.items() for check in CHECKS for problem in check(path, text)]
    problems += check_wired(files, cmake_lists())
    for problem in problems:
        print(problem)
    print(f"tidy: {len(files)} files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
