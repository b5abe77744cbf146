"""What a Python client sees when the daemon dies, and how much memory it takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import PATHS, ROOT, fill, layers, open_space

import kvtier


def test_committed_tokens_survive_kill_9(daemon):
    client = daemon.client()
    space = client.open_space(model="killed", runtime="pytest", layers=layers())
    sequence = space.create(name="kept")
    k, _ = fill(sequence, space, list(range(500)))
    sequence.commit()
    daemon.kill()
    again = daemon.client().open_space(model="killed", runtime="pytest", layers=layers())
    with again.open("kept") as kept:
        assert kept.length == 500
        np.testing.assert_array_equal(kept.read(1, 0, 500)[0], k[1])
        assert kept.tokens()[:, 0].tolist() == list(range(500))


def stopped(pid: int) -> bool:
    stats = [task.joinpath("stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return all(text.rsplit(")", 1)[1].split()[0] == "T" for text in stats)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_missing_row_is_an_error_within_200_ms(daemon, number):
    client = daemon.client(autostart=False) if daemon.client() else None
    space = open_space(client)
    sequence = space.create(name="far")
    fill(sequence, space, list(range(4000)))
    sequence.commit()
    sequence.close()
    sequence = space.open("far")
    view = sequence.view(budget=64)
    q = np.ones((4, 16), np.float32)
    view.attend(0, q)
    pid = daemon.pid
    os.kill(pid, number)
    while number == signal.SIGSTOP and not stopped(pid):  # its threads stop one after the other
        time.sleep(0.001)
    try:
        start = time.monotonic()
        with pytest.raises(kvtier.DaemonLost):
            view.attend(1, q)  # nothing of this layer is in the slot cache
        assert time.monotonic() - start < 0.2
    finally:
        if number == signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)


def test_a_seal_that_was_given_up_is_settled_later(daemon):
    """The daemon is stopped while a full half of the tail is sealed, and continued."""
    client = daemon.client(autostart=False) if daemon.client() else None
    space = open_space(client)
    sequence = space.create(name="stopped")
    k, _ = fill(sequence, space, list(range(2000)))
    pid = daemon.pid
    os.kill(pid, signal.SIGSTOP)
    while not stopped(pid):
        time.sleep(0.001)
    try:
        more, _ = fill(sequence, space, list(range(2000, 2048)))
        for _ in range(2):
            with pytest.raises(kvtier.DaemonLost, match="continue it"):
                sequence.commit()
    finally:
        os.kill(pid, signal.SIGCONT)
    sequence.commit()
    sequence.close()
    with space.open("stopped") as again:
        assert again.length == 2048
        np.testing.assert_array_equal(again.read(1, 0, 2000)[0], k[1])
        np.testing.assert_array_equal(again.read(1, 2000, 48)[0], more[1])


def test_a_sequence_that_is_dropped_starts_no_daemon(daemon):
    space = open_space(daemon.client())
    sequence = space.create(name="dropped")
    fill(sequence, space, list(range(10)))
    daemon.kill()
    start = time.monotonic()
    with daemon.settings():
        del sequence
    assert time.monotonic() - start < 2
    with pytest.raises(kvtier.NotFound, match="nobody listens"):
        daemon.client(autostart=False)


def test_a_forked_child_waits_for_no_thread_of_its_parent(daemon):
    """Threads of the parent are in calls, which hold the mutexes of client and sequence."""
    client = daemon.client()
    space = open_space(client)
    sequence = space.create()
    fill(sequence, space, list(range(10)))
    sequence.commit()
    pid = daemon.pid
    os.kill(pid, signal.SIGSTOP)
    while not stopped(pid):
        time.sleep(0.001)
    polling = threading.Thread(target=client.objects_poll, kwargs={"timeout_ms": 1000})
    cutting = threading.Thread(target=sequence.truncate, args=[0])
    try:
        polling.start()
        cutting.start()
        time.sleep(0.2)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(10)
                for call in (lambda: sequence.length, lambda: client.request({"op": "status"})):
                    with pytest.raises(kvtier.Stale, match="fork"):
                        call()
                for handle in (sequence, space, client):
                    handle.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    polling.join()
    cutting.join()
    assert sequence.length == 0


def test_the_example_finds_what_it_stored(daemon):
    def run() -> str:
        return subprocess.run(
            [sys.executable, str(ROOT / "examples" / "decode.py"), "book", "3000"],
            env=os.environ | daemon.environment | PATHS,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    first = run()
    assert "0 tokens are stored" in first and "token 3003:" in first
    daemon.kill()
    second = run()
    assert "3004 tokens are stored" in second and "token 3007:" in second
    # Both decode under the same conditions: nothing of the first run's filling is left in a tail,
    # whose rows are all attended to, and a budget is as large from the disk as from memory.
    for text in (first, second):  # the budget finds what the queries look for
        told = [line.split() for line in text.splitlines() if line.startswith("token ")]
        assert len(told) == 4
        for words in told:
            some, exactly = float(words[4].rstrip(",")), float(words[6])
            assert words[5] == "exactly" and some == pytest.approx(exactly, abs=0.01)
    rows = [int(text.splitlines()[-1].split()[0]) for text in (first, second)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("arguments", [(), ("book", "many"), ("book", "0"), ("book", "1", "2")])
def test_the_example_says_what_it_takes(arguments):
    run = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "decode.py"), *arguments],
        env=os.environ | PATHS,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("usage: decode.py ") and "Traceback" not in run.stderr


MEMORY = """
    import json, sys
    sys.path[:0] = {path}
    import numpy as np, kvtier
    from kvtier.story.machine import private_bytes
    from conftest import layers
    geometry = layers(count=8, kv_heads=4, query_heads=8, dim=64)
    client = kvtier.Client(name="memory")
    space = client.open_space(model="memory", runtime="pytest", layers=geometry)
    q = np.random.default_rng(3).standard_normal((200, 8, 64), dtype=np.float32)
    private = private_bytes()
    sequence = space.open("long", writable=False)
    view = sequence.view(budget=256, window=64, sinks=16)
    for i in range(200):
        view.attend(i % 8, q[i])
    stats = dict(view.stats())
    print(json.dumps({{"private": private_bytes() - private, "tokens": len(sequence), **stats}}))
"""


def test_private_memory_is_bounded_by_the_budget(daemon):
    """Twice the budget's rows, sinks and window; not the 64 MB of the sequence. Measured in a
    process of its own."""
    client = daemon.client()
    space = client.open_space(
        model="memory", runtime="pytest", layers=layers(count=8, kv_heads=4, query_heads=8, dim=64)
    )
    with space.create(name="long") as sequence:
        fill(sequence, space, list(range(4096)))
        sequence.commit()
    script = textwrap.dedent(MEMORY).format(path=[p for p in sys.path if p])
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | daemon.environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    got = json.loads(run.stdout.splitlines()[-1])
    row = 2 * 64 * 4
    heads = 8 * 4
    rows = heads * (2 * 256 + 64 + 16) * row
    whole = heads * 4096 * row
    slack = 3 << 20  # the interpreter's own, tables of the view, one fetch buffer
    assert got["tokens"] == 4096 and got["rows_fetched"] > 0
    assert got["private"] <= rows + slack < whole / 2
    assert got["client_bytes"] <= rows + slack
