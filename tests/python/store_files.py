"""What the files of a store say, read as docs/formats.md has it: for tests that need to know which
units and codes the daemon made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kvtier.quality.reference.codebook import Codebook

HEAD = 4096


def padded(size: int) -> int:
    return -(-size // 64) * 64


def codebook(store: Path, kv_heads: int, dim: int) -> Codebook:
    """The one codebook of a store with one layer."""
    (path,) = (store / "codebooks").glob("*.kvb")
    file = path.read_bytes()
    assert file[:8] == b"KVTCBK\x1a\n"
    at, heads = HEAD + 64, []
    for _ in range(kv_heads):
        begin = at

        def take(kind: type, count: int) -> torch.Tensor:
            nonlocal at
            part = np.frombuffer(file, kind, count, at)
            at += part.nbytes
            return torch.from_numpy(part.copy())

        mean = take(np.float32, dim)
        encode = take(np.float32, dim * dim).view(dim, dim)
        query_map = take(np.float32, dim * dim).view(dim, dim)
        entries = take(np.float32, 16 * dim)
        subspaces = dim // 4
        first = take(np.uint16, subspaces + 1).long()
        dims = take(np.uint16, dim).long()
        assert first.tolist() == list(range(0, dim + 1, 4))
        heads.append((mean, encode, query_map, entries.view(subspaces, 16, 4), dims.view(-1, 4)))
        at = begin + padded(at - begin)
    mean, encode, query_map, entries, dims = (torch.stack(x) for x in zip(*heads))
    return Codebook(entries, dims, 4, mean[:, None], encode, query_map.transpose(1, 2))


def sidecars(store: Path, kind: int) -> list[Path]:
    """Of the segments of the one sequence there is, from its first token on."""
    return sorted((store / "sidecars").glob(f"*-{kind}.kva"))


def clusters(store: Path, kind: int, kv_heads: int, dim: int) -> torch.Tensor:
    """Unit of each row, int64 [H, C], from the segments' sidecars of that kind, whose vectors are
    means; one layer."""
    parts, base = [], 0
    for path in sidecars(store, kind):
        of_row, units = clusters_of(path, kv_heads, dim)
        parts.append(of_row + base)
        base += units
    return torch.cat(parts, 1)


def clusters_of(path: Path, kv_heads: int, dim: int) -> tuple[torch.Tensor, int]:
    file = path.read_bytes()
    assert file[:8] == b"KVTSID\x1a\n"
    units, tokens = np.frombuffer(file, np.uint32, 2, 48).tolist()
    at, of_row = HEAD + 64, torch.empty(kv_heads, tokens, dtype=torch.int64)
    for head in range(kv_heads):
        members = np.frombuffer(file, np.uint16, tokens, at).astype(np.int64)
        at += padded(2 * tokens)
        starts = np.frombuffer(file, np.uint16, units + 1, at).astype(np.int64)
        at += padded(2 * (units + 1)) + padded(2 * units * dim)
        for unit in range(units):
            of_row[head, members[starts[unit] : starts[unit + 1]]] = unit
    return of_row, units


def own_codes(
    store: Path, kind: int, kv_heads: int, dim: int, subspaces: int
) -> dict[str, torch.Tensor]:
    """Entries [H, M, 64 per segment, s] and of each row the places of its entries [H, C, M], from
    the segments' sidecars of that kind; one layer, sub-spaces of equal size."""
    parts = [own_codes_of(p, kv_heads, dim, subspaces) for p in sidecars(store, kind)]
    return {
        "entries": torch.cat([entries for entries, _ in parts], 2),
        "codes": torch.cat([codes + 64 * i for i, (_, codes) in enumerate(parts)], 1),
    }


def own_codes_of(
    path: Path, kv_heads: int, dim: int, subspaces: int
) -> tuple[torch.Tensor, torch.Tensor]:
    file = path.read_bytes()
    assert file[:8] == b"KVTSID\x1a\n"
    tokens, width = int(np.frombuffer(file, np.uint32, 1, 52)[0]), dim // subspaces
    blocks = -(-tokens // 32)
    at, entries, places = HEAD + 64, [], []
    for _ in range(kv_heads):
        part = np.frombuffer(file, np.float16, 64 * dim, at).astype(np.float32)
        entries.append(torch.from_numpy(part.reshape(subspaces, 64, width)))
        at += 2 * 64 * dim
        codes = np.frombuffer(file, np.uint8, blocks * subspaces * 24, at)
        at += padded(codes.size)
        codes = codes.reshape(blocks, subspaces, 24)
        token = np.arange(32)
        low = codes[..., token % 16] >> token // 16 * 4 & 15
        high = codes[..., 16 + token % 8] >> token // 8 * 2 & 3
        index = (low | high << 4).transpose(0, 2, 1).reshape(-1, subspaces)[:tokens]
        places.append(torch.from_numpy(index.astype(np.int64)))
    return torch.stack(entries), torch.stack(places)


def low_rank(
    store: Path, kind: int, kv_heads: int, dim: int, rank: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys before rotation [H, C, d], frequencies and positions [C], from the first segment's
    sidecar of that kind; one layer."""
    path = min((store / "sidecars").glob(f"*-{kind}.kva"))
    file = path.read_bytes()
    assert file[:8] == b"KVTSID\x1a\n"
    tokens, room = int(np.frombuffer(file, np.uint32, 1, 52)[0]), dim // 2
    at = HEAD + 64
    pairing, pairs = np.frombuffer(file, np.uint32, 2, at).tolist()
    assert pairing == 1
    frequencies = np.frombuffer(file, np.float32, pairs, at + 8)
    positions = np.frombuffer(file, np.uint32, tokens, at + 8 + 4 * room).astype(np.int64)
    at += padded(8 + 4 * room + 4 * tokens)
    coefficients = halves(file, at, tokens, rank)
    at += padded(2 * tokens * rank)
    keys = []
    for _ in range(kv_heads):
        keys.append(coefficients @ halves(file, at, rank, dim))
        at += padded(2 * rank * dim)
    return torch.stack(keys), torch.from_numpy(frequencies.copy()), torch.from_numpy(positions)


def halves(file: bytes, at: int, rows: int, columns: int) -> torch.Tensor:
    part = np.frombuffer(file, np.float16, rows * columns, at).astype(np.float32)
    return torch.from_numpy(part.reshape(rows, columns))


def decode(vectors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The keys [H, C, d] that own codes stand for."""
    entries, codes = vectors["entries"], vectors["codes"]
    heads = torch.arange(len(codes))[:, None]
    return torch.cat([entries[heads, m, codes[..., m]] for m in range(codes.shape[2])], 2)


def kind_of(partition: int, abstract: int, tokens: int, parameter: int = 0) -> int:
    """As kernels/abstract_spec.h packs it."""
    return partition | abstract << 4 | (tokens - 1) << 8 | parameter << 20


