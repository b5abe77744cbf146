"""The presets as kvtier runs them: a daemon of this run's own, the context stored in it as a
sequence, and each preset a view that the transformers adapter reads through, one token a step.

Store and socket lie in a temporary directory that goes away with the run. The context's rows are
written as the prefix has them, so nothing is prefilled twice and both engines see the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from . import metrics, report
from .evaluate import Progress, Settings, mean_over_layers
from .model import Judge
from .prefix import Prefix
from .reference.budget import Tokens
from .reference.residency import Lru

PIECE = 1024
ARENA_BYTES = 2 << 30
WAIT_MS = 600_000  # what is measured is the choice, not how soon a worker has built the abstracts


class NotThere(Exception):
    """The daemon does not know a preset, or cannot run it."""

    status = report.NOT_FOUND


def name_of(prefix: Prefix) -> str:
    """Of its tokens: a prefix that is let go may leave its place in memory, and with it its id(),
    to the next one."""
    digest = hashlib.blake2b(repr(prefix.ids).encode(), digest_size=12).hexdigest()
    return f"context-{digest}"


def parts_of(preset: str) -> dict[str, Any]:
    """What the daemon's preset is made of, by the words of its file."""
    import kvtier

    return kvtier.presets("" if preset == "default" else preset)["presets"][0]


def preset_of(judge: Judge, preset: str) -> str:
    """As views take it: "default" is what the model's profile names, else the built-in one."""
    from ..model_space import fingerprint

    import kvtier

    if preset != "default":
        return preset
    profiles = [one for one in kvtier.presets()["profiles"] if "error" not in one]
    if profiles:
        model = fingerprint(judge.model, judge.tokenizer, judge.files)
        for profile in profiles:
            if model in (profile["model"], profile["also"]):
                return profile["preset"]
    return parts_of(preset)["name"]


def check(preset: str) -> None:
    """Raises NotThere where a view would not take the preset: before a model is loaded."""
    import kvtier

    try:
        parts_of(preset)
    except kvtier.Error as error:
        from .reference import PRESETS

        other = "; --engine reference does" if preset in PRESETS else ""
        raise NotThere(f"the daemon does not run the preset {preset}: {error}{other}") from error


class Daemon:
    """`with Daemon() as daemon`: started by the first use, stopped and deleted at the end."""

    def __init__(self, arena_bytes: int = ARENA_BYTES):
        self.arena_bytes = arena_bytes
        self._client: Any = None
        self._space: Any = None
        self._stored: set[str] = set()
        self._said: set[str] = set()

    def __enter__(self) -> "Daemon":
        from ..story.machine import disk_directory

        self._directory = Path(tempfile.mkdtemp(prefix="kvtier-quality-", dir=disk_directory()))
        (self._directory / "s").mkdir(mode=0o700)
        self._before = dict(os.environ)
        socket = str(self._directory / "s" / "kvtierd.sock")
        os.environ.update(
            {
                "KVTIER_CONFIG": "/dev/null",  # the user's daemon's
                "KVTIER_SOCKET": socket,
                "KVTIER_DAEMON_SOCKET": socket,
                "KVTIER_STORE_PATH": str(self._directory / "store"),
                "KVTIER_HOST_ARENA_BYTES": str(self.arena_bytes),
                "KVTIER_HOST_LEASED_BYTES_PER_CLIENT_MAX": str(self.arena_bytes // 2),
            }
        )
        return self

    def __exit__(
        self, kind: type | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        from ..story.machine import stop_daemon

        try:
            if self._client is not None:
                stop_daemon(self._client)
        except Exception:  # it is gone already
            pass
        os.environ.clear()
        os.environ.update(self._before)
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def client(self) -> Any:
        if self._client is None:
            import kvtier

            self._client = kvtier.Client(name="quality")
        return self._client

    def space(self, judge: Judge) -> Any:
        from .. import transformers as adapter

        adapter.install(judge.model, judge.tokenizer)
        if self._space is None:
            self._space = adapter.open_space(
                self.client, judge.model, judge.tokenizer, files=judge.files
            )
        return self._space

    def store(self, judge: Judge, prefix: Prefix, progress: Progress) -> str:
        """Writes the prefix as a sealed sequence, once, and returns its name."""
        space = self.space(judge)
        name = name_of(prefix)
        if name in self._stored:
            return name
        flags = judge.boundaries(prefix.ids, [])
        sequence = space.create(name=name)
        for first in range(0, prefix.length, PIECE):
            part = slice(first, min(first + PIECE, prefix.length))
            sequence.append(prefix.ids[part], flags=flags[part].tolist())
            for layer in range(judge.layers):
                sequence.write(layer, 0, prefix.keys[layer][:, part], prefix.values[layer][:, part])
            sequence.finish_piece()
            self._show_queries(sequence, prefix, part)
            progress(part.stop, prefix.length)
        sequence.commit()
        sequence.close()  # seals what is left
        self._stored.add(name)
        return name

    @staticmethod
    def _show_queries(sequence: Any, prefix: Prefix, part: slice) -> None:
        """Of the newest tokens, as the adapter shows them while it reads: codebooks are trained
        with them."""
        mine = (prefix.query_positions >= part.start) & (prefix.query_positions < part.stop)
        for layer, queries in enumerate(prefix.queries[:, :, mine]):
            sequence.observe_queries(layer, queries.transpose(0, 1).contiguous())

    def calibrate(self, judge: Judge, texts: list[Prefix], presets: list[str]) -> None:
        """Stores the calibration texts first and has the codebooks that the presets need trained on
        them: they must not have seen the text that is judged."""
        for text in texts:
            self.store(judge, text, lambda done, total: None)
        for preset in presets:
            with suppress(NotThere):  # said when it is measured
                self.cache(judge, texts[-1], preset, Settings(budget=16)).close()

    def cache(self, judge: Judge, prefix: Prefix, preset: str, settings: Settings) -> Any:
        """An adapter's cache over a new sequence that begins with the prefix. A budget of 0 means
        everything there, so a preset that has none is given the sinks'."""
        import kvtier

        from .. import transformers as adapter

        space = self.space(judge)
        name = self.store(judge, prefix, lambda done, total: None)
        base = space.open(name, writable=False)
        try:
            return adapter.KvtierCache(
                base.fork(prefix.length),
                kv_dtype=space.dtype,
                preset="" if preset == "default" else preset,
                budget=settings.budget or max(1, settings.sinks),
                sinks=settings.sinks,
                window=settings.window,
                capacity=settings.capacity,
                wait_ms=WAIT_MS,
            )
        except (kvtier.NotFound, kvtier.InvalidArgument, kvtier.Unsupported) as error:
            raise NotThere(f"the daemon does not run the preset {preset}: {error}") from error
        finally:
            base.close()

    def lacking(self, cache: Any, preset: str) -> dict[str, int]:
        """What the cache's view had to do without, so that it was not the preset: units scored
        without their abstract, and segments that have no rendition now. Said once of a preset."""
        stats = cache.view.stats()
        without = 0
        if any(f'precision = "{kind}:' in stats["preset"] for kind in ("base", "low-rank")):
            without = self.client.request({"op": "stats"})["abstracts"]["base_no_room"]
        found = {"units_missing": stats["units_missing"], "segments_without": without}
        if any(found.values()) and preset not in self._said:
            self._said.add(preset)
            missing = stats["units_missing"]
            share = missing / max(1, missing + stats["units_scored"])
            print(
                ("\r\x1b[2K" if sys.stderr.isatty() else "")
                + f"not the preset {preset} as it is: {100 * share:.1f} % of its units had no "
                f"abstract, {found['segments_without']} segments have no base rendition or "
                "low-rank keys: set KVTIER_HOST_ABSTRACTS_BYTES higher, as 1GiB (it is 256MiB "
                "where it is not set)",
                file=sys.stderr,
            )
        return found


def steps_of(
    cache: Any, judge: Judge, ids: list[int], progress: Progress
) -> Iterator[tuple[int, torch.Tensor, float]]:
    """One token through the model at a time: (step, logits [1, V] after it, seconds)."""
    for i, token in enumerate(ids):
        start = time.monotonic()
        with torch.inference_mode():
            logits = judge.model(
                input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True
            ).logits[0]
        yield i, logits, time.monotonic() - start
        progress(i + 1, len(ids))


def logits_of(
    daemon: Daemon,
    judge: Judge,
    prefix: Prefix,
    ids: list[int],
    name: str,
    settings: Settings,
    progress: Progress,
) -> torch.Tensor:
    """[len(ids), V] after each of ids, which follow the prefix."""
    cache = daemon.cache(judge, prefix, name, settings)
    try:
        got = torch.cat([logits for _, logits, _ in steps_of(cache, judge, ids, progress)])
        daemon.lacking(cache, name)
        return got
    finally:
        cache.close()


def with_daemon(
    daemon: Daemon,
    judge: Judge,
    prefix: Prefix,
    ids: list[int],
    full: torch.Tensor,
    name: str,
    settings: Settings,
    progress: Progress,
) -> tuple[metrics.PerToken, dict[str, Any]]:
    """As evaluate.with_reference, one step at a time."""
    cache = daemon.cache(judge, prefix, name, settings)
    steps = len(ids) - 1
    first, total, parts = {}, 0.0, []
    try:
        for i, logits, seconds in steps_of(cache, judge, ids[:-1], progress):
            target = torch.tensor(ids[i + 1 : i + 2])
            parts.append(metrics.compare(full[i : i + 1], logits, target))
            total += seconds
            if i == 0:
                first = dict(cache.view.stats())
        figures = cost_of(judge, prefix, name, settings, first, dict(cache.view.stats()), steps)
        figures |= daemon.lacking(cache, name)
    finally:
        cache.close()
    figures["ms_per_step"] = 1000 * total / steps
    return metrics.concatenate(parts), figures


def cost_of(
    judge: Judge,
    prefix: Prefix,
    name: str,
    settings: Settings,
    first: dict[str, int],
    last: dict[str, int],
    steps: int,
) -> dict[str, Any]:
    """As evaluate.cost_of, from the counters of a view. With a base rendition only exact rows come
    in."""
    pairs = judge.layers * judge.kv_heads
    context = prefix.length * judge.row_bytes()  # of one layer and KV head
    after_first = max(1, steps - 1)
    entered = (last["rows_fetched"] - first["rows_fetched"]) / after_first / pairs
    rebuilt = (last["rows_rebuilt"] - first["rows_rebuilt"]) / after_first / pairs
    # Low-rank keys lie where abstracts do, base renditions in the host's memory.
    device = last["abstract_bytes"] + (last["base_bytes"] if last["rows_rebuilt"] else 0)
    rows = last["rows_attended"] / last["steps"] / judge.kv_heads
    tail = (steps + 1) / 2
    waited = (last["rows_waited"] - first["rows_waited"]) / after_first / pairs
    figures = {
        "device_bytes_ratio": device / pairs / context,
        "resident_bytes_ratio": resident_of(judge, prefix, name, settings),
        "fetched_ratio": (entered - rebuilt / 2) / prefix.length,  # of these, values alone
        "waited_ratio": (waited - rebuilt / 2) / prefix.length,
        "rows_attended": max(0.0, rows - tail),
        "rows_entered": entered,
        "rows_rebuilt": rebuilt,
        "rows_entered_of_budget": entered / settings.budget if settings.budget else 0.0,
        "rows_waited": waited,
        "steps_waited": (last["steps_waited"] - first["steps_waited"])
        / (after_first * judge.layers),
        "rows_first_step": first["rows_fetched"] / pairs,
        "hot_rows_entered": last["rows_refined"] / last["steps"] / judge.kv_heads,
        "base_bytes_ratio": last["base_bytes"] / pairs / context,
        "base_mass": last["base_mass_sum"] / last["steps"],
        "base_error": last["base_error_sum"] / max(1, last["rows_refined"]),
        "refining_steps": last["steps_refined"] / last["steps"],
        "selections_per_step": last["selections"] / last["steps"] / judge.kv_heads,
        # Mean over steps and query heads of the share of the mass that may have been missed; none
        # where the abstract does not say it for every step.
        "missed_at_most": (
            last["bound_sum"] / last["steps"] if last["bound_steps"] == last["steps"] else None
        ),
        "host_bytes_per_step": (last["bytes_host"] - first["bytes_host"]) / after_first,
        "disk_bytes_per_step": (last["bytes_disk"] - first["bytes_disk"]) / after_first,
        "daemon_wait_ms_per_step": (last["wait_ns"] - first["wait_ns"]) / after_first / 1e6,
    }
    return figures


def resident_of(judge: Judge, prefix: Prefix, name: str, settings: Settings) -> float:
    """Rows that a view keeps room for over those of the context: slot caches as it makes them,
    and everything in dense layers."""
    parts = parts_of(preset_of(judge, name))
    budget = 0 if parts["budget"] == "kept" else settings.budget
    kept = settings.sinks + settings.window
    plan = Tokens(percent=tuple(parts.get("layer_percent", [100])))
    cache = Lru(parts["residency_percent"])
    rows = [
        cache.capacity(plan.of_layer(budget, layer), kept, settings.capacity)
        for layer in range(judge.layers)
    ]
    dense = judge.layers if parts["budget"] == "all" else parts["dense_layers"]
    return mean_over_layers([each / prefix.length for each in rows], dense)
