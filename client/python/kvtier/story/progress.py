"""Progress bars on stderr: a line that is repainted on a terminal, a line now and then in a log."""

from __future__ import annotations

import math
import sys
import threading
import time
from types import TracebackType


class Step:
    """`with Step("reading") as step: step(done, total)`. Where nothing calls it, it shows the
    seconds go by, with `expected_s` beside a share that nears 1 and never stands. `seconds` holds
    the duration afterwards; `note` is printed behind it."""

    WIDTH = 28

    def __init__(self, label: str, expected_s: float | None = None):
        self.label, self.expected_s, self.note, self.seconds = label, expected_s, "", 0.0
        self._done, self._total = 0, 0
        self._stop = threading.Event()
        self._terminal = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        self._done, self._total = done, total

    def __enter__(self) -> "Step":
        self._start = time.monotonic()
        self._thread = threading.Thread(target=self._repaint, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._start
        self._stop.set()
        self._thread.join()
        state = "failed" if kind else self.note
        self._print(f"{self.label:<44} {self.seconds:6.1f} s  {state}", last=True)

    def share(self, elapsed_s: float) -> float:
        if self._total:
            return self._done / self._total
        return -math.expm1(-elapsed_s / self.expected_s) if self.expected_s else 0.0

    def _repaint(self) -> None:
        while not self._stop.wait(0.3 if self._terminal else 5.0):
            elapsed = time.monotonic() - self._start
            share = self.share(elapsed)
            filled = int(share * self.WIDTH)
            bar = "#" * filled + "." * (self.WIDTH - filled)
            self._print(
                f"{self.label:<44} {elapsed:6.1f} s  [{bar}] {100 * share:3.0f} %", last=False
            )

    def _print(self, line: str, last: bool) -> None:
        if self._terminal:
            sys.stderr.write(f"\r\x1b[2K{line}" + ("\n" if last else ""))
        else:
            sys.stderr.write(line.rstrip() + "\n")
        sys.stderr.flush()
