"""Prints "PASSED FAILED NAMES-OF-FAILED" of a JUnit file that ctest wrote."""
import sys
import xml.etree.ElementTree as tree

cases = tree.parse(sys.argv[1]).getroot().findall("testcase")
failed = [c.get("name") for c in cases if c.get("status") == "fail" or c.find("failure") is not None]
print(len(cases) - len(failed), len(failed), ",".join(failed))
if not cases:
    sys.exit(1)
