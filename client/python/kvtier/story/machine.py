"""What the story does to and reads from the machine: its own daemon, page cache, /proc."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .settings import Settings


SPACE_BYTES = 3 << 30  # store and saved cache of one run, with room to spare


def disk_directory() -> str:
    """Where temporary files lie on a disk: /tmp, or, where that is memory, /var/tmp."""
    for directory in (tempfile.gettempdir(), "/var/tmp"):
        if (
            file_system(directory) not in ("tmpfs", "ramfs")
            and shutil.disk_usage(directory).free >= SPACE_BYTES
        ):
            return directory
    sys.exit(
        f"no disk with {SPACE_BYTES >> 30} GiB free at {tempfile.gettempdir()} or /var/tmp: "
        "give --directory"
    )


def file_system(directory: str) -> str:
    """Of the mount that holds the directory, as the kernel names it."""
    best, kind = "", ""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, name, *_ = line.split()
        if os.path.commonpath([os.path.realpath(directory), point]) == point and len(point) >= len(
            best
        ):
            best, kind = point, name
    return kind


def socket_of(settings: Settings) -> Path:
    socket = Path(settings.directory) / "run" / "kvtierd.sock"
    if len(str(socket)) > 100:  # a Unix socket's path has 107 bytes
        socket = Path(
            f"/tmp/kvtier-story-{os.getuid()}-{os.path.basename(settings.directory)}/kvtierd.sock"
        )
    return socket


def environment(settings: Settings, arena_bytes: int) -> None:
    """Settings of the daemon that the client library starts from this process: a store and a socket
    of its own."""
    socket = socket_of(settings)
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ.update(
        {
            "KVTIER_CONFIG": "/dev/null",  # the user's daemon's
            "KVTIER_SOCKET": str(socket),
            "KVTIER_DAEMON_SOCKET": str(socket),
            "KVTIER_STORE_PATH": str(settings.store),
            "KVTIER_HOST_ARENA_BYTES": str(arena_bytes),
            "KVTIER_HOST_LEASED_BYTES_PER_CLIENT_MAX": str(arena_bytes // 2),
        }
    )


def clean_up(settings: Settings) -> None:
    """Stops the daemon of a run that ended early."""
    import kvtier

    socket = socket_of(settings)
    try:
        stop_daemon(kvtier.Client(socket_path=str(socket), autostart=False, timeout_ms=2000))
    except kvtier.Error:
        pass  # nobody listens: the usual case
    if socket.parent.parent != Path(settings.directory):
        shutil.rmtree(socket.parent, ignore_errors=True)


def daemon_pid(client: Any) -> int:
    return int(client.request({"op": "status"})["pid"])


def daemon_io(pid: int) -> dict[str, int]:
    """Bytes that the daemon has had the disk read and write, as the kernel counts them."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return {"read_bytes": 0, "write_bytes": 0}
    return {key: int(value) for key, value in (line.split(": ") for line in lines)}


class Others:
    """How many processors programs other than this process and its daemon keep busy, from here on:
    what a host takes from a virtual machine is theirs, too."""

    def __init__(self, daemon: int | None = None):
        self._own = ["self"] if daemon is None else ["self", str(daemon)]
        self._start = self._now()

    def _now(self) -> tuple[float, float]:
        """Seconds by the clock, and of processor time that others took."""
        user, nice, system, _, _, *rest = Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
        ticks = sum(map(int, (user, nice, system, *rest)))
        for process in self._own:
            stat = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks -= int(stat[11]) + int(stat[12])
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK")

    def load(self) -> float:
        (start, before), (end, after) = self._start, self._now()
        return max(0.0, (after - before) / (end - start))


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


WHOLE_CACHE_DROPPED = "whole page cache dropped"
FILES_DROPPED = "page cache of these files dropped"


def drop_page_cache(settings: Settings, paths: Iterable[Path]) -> str:
    """Makes the next read of these files come from the disk. Returns how that was done."""
    for path in paths:
        for file in [path] if path.is_file() else path.rglob("*"):
            if not file.is_file():
                continue
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    if settings.drop_all:
        try:
            Path("/proc/sys/vm/drop_caches").write_text("1\n")
            return WHOLE_CACHE_DROPPED
        except OSError:
            pass  # only root may
    return FILES_DROPPED


def disk_parts(store: Path) -> dict[str, int]:
    """Bytes on disk by folder of the store: segments, logs, sidecars, ...; "." has what lies beside
    them. One pass, for the daemon writes and deletes meanwhile: two would not agree."""
    parts: dict[str, int] = {}
    for directory, _, files in os.walk(store):  # passes over a folder that went away
        part = Path(directory).relative_to(store).parts
        name = part[0] if part else "."
        parts.setdefault(name, 0)
        for file in files:
            try:
                parts[name] += os.lstat(os.path.join(directory, file)).st_blocks * 512
            except FileNotFoundError:
                pass  # deleted since the folder was read
    return dict(sorted(parts.items()))


def private_bytes() -> int:
    """Memory that only this process has (private pages), from smaps_rollup."""
    total = 0
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            total += int(line.split()[1]) * 1024
    return total
