"""What the story does to and reads from the machine: its own daemon, page cache, /proc."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .settings import Settings


def environment(settings: Settings, arena_bytes: int) -> None:
    """Settings of the daemon that the client library starts from this process: a store and a socket of its own."""
    directory = Path(settings.directory)
    socket = directory / "run" / "kvtierd.sock"
    if len(str(socket)) > 100:  # a Unix socket's path has 107 bytes
        socket = Path(f"/tmp/kvtier-story-{os.getuid()}-{os.path.basename(directory)}/kvtierd.sock")
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ.update({
        "KVTIER_SOCKET": str(socket),
        "KVTIER_DAEMON_SOCKET": str(socket),
        "KVTIER_STORE_PATH": str(settings.store),
        "KVTIER_HOST_ARENA_BYTES": str(arena_bytes),
        "KVTIER_HOST_LEASED_BYTES_PER_CLIENT_MAX": str(arena_bytes // 2),
    })


def daemon_pid(client: Any) -> int:
    return int(client.request({"op": "status"})["pid"])


def daemon_io(pid: int) -> dict[str, int]:
    """Bytes that the daemon has had the disk read and write, as the kernel counts them."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return {"read_bytes": 0, "write_bytes": 0}
    return {key: int(value) for key, value in (line.split(": ") for line in lines)}


def wait_gone(pid: int, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.01)
    raise TimeoutError(f"kvtierd ({pid}) is still there after {timeout_s:.0f} s")


def stop_daemon(client: Any) -> None:
    pid = daemon_pid(client)
    client.request({"op": "stop"})
    wait_gone(pid)


def kill_daemon(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)


def drop_page_cache(paths: Iterable[Path]) -> str:
    """Makes the next read of these files come from the disk. Returns how that was done."""
    for path in paths:
        for file in [path] if path.is_file() else path.rglob("*"):
            if not file.is_file():
                continue
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1\n")
        return "whole page cache dropped"
    except OSError:
        return "page cache of these files dropped"


def disk_bytes(directory: Path) -> int:
    return sum(f.stat().st_blocks * 512 for f in directory.rglob("*") if f.is_file())


def private_bytes() -> int:
    """Memory that only this process has (private pages), from smaps_rollup."""
    total = 0
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            total += int(line.split()[1]) * 1024
    return total
