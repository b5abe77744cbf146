"""tools/check --long can pass: what it asks of the long loops fits in their tests' timeouts.

    long_timeouts.py BUILD    reads ctest's list of that build, and the numbers in tools/check
"""
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Per unit of the loop, in seconds, on two cores that others use too.
COST_S = {"KVT_SIM_SEEDS": 0.1, "KVT_CRASH_LOOPS": 5, "KVT_FUZZ_MUTATIONS": 0.005, "KVT_CHAOS_SECONDS": 1.5}
LOOPS = {"sim_test": ["KVT_SIM_SEEDS"], "daemon_crash_test": ["KVT_CRASH_LOOPS"],
         "client_crash_test": ["KVT_CRASH_LOOPS", "KVT_CHAOS_SECONDS"], "ring_fuzz": ["KVT_FUZZ_MUTATIONS"]}

check = (ROOT / "tools/check").read_text()
long_mode = re.search(r"^if \[ \$mode = long \]; then\n(.*?)^fi", check, re.M | re.S).group(1)
wanted = {name: int(count) for name, count in re.findall(r"(KVT_\w+)=(?:\$\{\w+:-)?(\d+)", long_mode)}
factor = int(re.search(r"timeout_factor=(\d+)", long_mode).group(1))
cache = (pathlib.Path(sys.argv[1]) / "CMakeCache.txt").read_text()
built_with = int(re.search(r"^KVTIER_TEST_TIMEOUT_FACTOR:\w+=(\d+)", cache, re.M).group(1))
listed = subprocess.run(["ctest", "--test-dir", sys.argv[1], "--show-only=json-v1"], text=True, capture_output=True, check=True).stdout
timeouts = {}
for test in json.loads(listed)["tests"]:
    for entry in test.get("properties", []):
        if entry["name"] == "TIMEOUT":
            timeouts[test["name"]] = entry["value"] / built_with * factor
problems = 0
for test, loops in LOOPS.items():
    needs = sum(wanted[loop] * COST_S[loop] for loop in loops)
    if timeouts[test] < needs:
        problems += 1
        print(f"{test}: --long gives it {timeouts[test]:.0f} s, its loops may need {needs:.0f} s")
sys.exit(problems != 0)
