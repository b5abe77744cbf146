"""What one run of the story is made of; passed to its processes as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass
class Settings:
    gguf: str
    document: str
    question: str
    second_question: str
    directory: str  # of this run: store, saved cache, results
    budget: int = 1024
    tokens: int = 32  # greedy tokens of each way to go on
    scored_tokens: int = 128  # the document's last tokens, for perplexity
    answer_tokens: int = 40
    arena_bytes: int = 1024 * MIB  # where the whole context is attended
    small_arena_bytes: int = 128 * MIB  # with the budget: less than the context's KV
    threads: int = 0
    drop_all: bool = True  # the whole page cache, where permitted; else that of our files

    @property
    def store(self) -> Path:
        return Path(self.directory) / "store"

    @property
    def saved_cache(self) -> Path:
        return Path(self.directory) / "cache.pt"

    @property
    def saved_tensors(self) -> Path:  # the same for safetensors
        return Path(self.directory) / "cache.safetensors"

    def result(self, part: str) -> Path:
        return Path(self.directory) / f"{part}.json"

    @property
    def path(self) -> Path:
        return Path(self.directory) / "settings.json"

    def save(self) -> Path:
        self.path.write_text(json.dumps(asdict(self)))
        return self.path

    @staticmethod
    def load(path: str) -> "Settings":
        return Settings(**json.loads(Path(path).read_text()))
