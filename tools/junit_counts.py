"""What a JUnit file of ctest says: "PASSED FAILED FAILED-NAMES SKIPPED SKIPPED-NAMES", names joined by commas or "-".

Counted are ctest's tests, most of them programs with many tests; skipped are the tests of GoogleTest within. One that skips
what MAY_SKIP does not name, or did not run, has failed: a test that never runs must not count as one that passed.
"""
import pathlib
import re
import sys
import xml.etree.ElementTree as tree

# What a machine may lack: the tests, and the steps of tools/check in which they may be skipped.
MAY_SKIP = [
    (r"HostileMachine\.(AFullDisk|ARepairOnAFullDisk|AFileSystemThatIsReadOnly)", r".*"),  # the right to mount
    (r"HostileMachine\.AsAnUnprivilegedUser", r".*"),  # whoever is not root has run all as such a user
    (r"Backends/IoSuite\.\w+/io_uring\w*", r".*"),  # io_uring
    (r"IoProbeTest\.(MemoryThatMayNotBeLockedIsSaidAndDoneWithout|MemlockZeroGoesOnAndNamesTheLimit)", r".*"),  # the same
    (r"Precision\.WhatMovesMeanwhileIsNeverAttendedTo|LowRank\.KeysOfWhatMovesMeanwhileAreNeverKept", r"tests-tsan"),  # a race by design
]
SKIPPED = re.compile(r"^\[  SKIPPED \] ([\w/]+\.[\w/]+)", re.MULTILINE)

step = pathlib.Path(sys.argv[1]).stem
cases = tree.parse(sys.argv[1]).getroot().findall("testcase")
failed, skipped = [], []
for case in cases:
    name = case.get("name")
    within = sorted(set(SKIPPED.findall(case.findtext("system-out") or "")))
    skipped += within
    amiss = [one for one in within if not any(re.fullmatch(test, one) and re.fullmatch(steps, step) for test, steps in MAY_SKIP)]
    if case.get("status") == "fail" or case.find("failure") is not None:
        failed.append(name)
    elif case.get("status") != "run":
        failed.append(f"{name}(not-run)")
    elif amiss:
        failed.append(f"{name}(skipped:{'+'.join(amiss)})")
print(len(cases) - len(failed), len(failed), ",".join(failed) or "-", len(skipped), ",".join(skipped) or "-")
if not cases:
    sys.exit(1)
