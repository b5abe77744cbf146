"""A small cache on disk, ~/.cache/kvtier-quality: prefixes and codebooks, so that a second run does
not read its texts again. At most 4 GiB, the longest unused goes first; safe to delete at any time.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

LIMIT_BYTES = 4 << 30


def directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kvtier-quality"


def get(name: str) -> dict[str, torch.Tensor] | None:
    """The tensors stored under the name, or None; a file that cannot be read is no file."""
    from safetensors.torch import load_file

    path = directory() / f"{name}.safetensors"
    try:
        tensors = load_file(path)
        os.utime(path)
        return tensors
    except Exception:  # missing, or cut off: it is made again
        return None


def put(name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Keeps the tensors where there is room; a disk that is full only costs the next run time."""
    from safetensors.torch import save_file

    place = directory()
    part = place / f"{name}.{os.getpid()}.part"
    try:
        place.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in tensors.items()}, part)
        part.replace(place / f"{name}.safetensors")
        _prune(place)
    except OSError:
        part.unlink(missing_ok=True)


def _prune(place: Path) -> None:
    files = sorted(place.glob("*.safetensors"), key=lambda p: p.stat().st_mtime, reverse=True)
    total = 0
    for path in files:
        total += path.stat().st_size
        if total > LIMIT_BYTES:
            path.unlink(missing_ok=True)
