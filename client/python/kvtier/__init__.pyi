from collections.abc import Sequence as _Seq
from typing import Any, Literal, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

__version__: str

class _Array(Protocol):
    """A numpy array or a torch CPU tensor."""
    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...

_Ids = _Seq[int] | _Array
_Reason = Literal[
    "all matched", "token differs", "nothing stored beyond", "nothing stored", "slower to load"
]

class Error(Exception):
    code: int

class Miss(Error): ...
class Full(Error): ...
class Timeout(Error): ...
class Busy(Error): ...
class InvalidArgument(Error): ...
class Unsupported(Error): ...
class Limit(InvalidArgument): ...
class NotFinite(InvalidArgument): ...
class NotFound(Error): ...
class Exists(Error): ...
class WrongSpace(Error): ...
class Permission(Error): ...
class Stale(Error): ...
class Corrupt(Error): ...
class DeviceError(Error): ...
class DaemonLost(Error): ...
class Internal(Error): ...

BUDGET_PROFILE: int
"""A view's budget: that of the profile that kvtier-quality --tune made for the model."""

def version() -> str: ...
def abi_version() -> int: ...
def strerror(status: int) -> str: ...
def presets(preset: str | None = None) -> dict[str, Any]:
    """The presets that views take: {"presets": [{"name", "from", parts}], "broken": [{"name",
    "from", "error"}], "directory", "profiles": [{"from", "model", "preset", "budget"}]}; of one,
    with its file's text as "toml"."""

class Layer:
    def __init__(
        self,
        *,
        kv_heads: int,
        query_heads: int,
        dim: int,
        dtype: Literal["f32", "f16", "bf16", "opaque"] = "f32",
        v_dim: int | None = None,
        kind: Literal["full", "sliding", "recurrent"] = "full",
        rope: Literal["after", "before", "none"] = "after",
    ) -> None: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def query_heads(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def v_dim(self) -> int: ...
    @property
    def dtype(self) -> str: ...

class Match:
    @property
    def tokens(self) -> int: ...
    @property
    def differs_at(self) -> int: ...
    @property
    def stored_token(self) -> int | None: ...
    @property
    def reason(self) -> _Reason: ...

class _Closable:
    @property
    def closed(self) -> bool: ...
    def close(self) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *args: Any) -> None: ...

class Client(_Closable):
    """A connection to the user's daemon. May be used from several threads."""
    def __init__(
        self,
        socket_path: str | None = None,
        autostart: bool = True,
        daemon_path: str | None = None,
        name: str | None = None,
        timeout_ms: int = 10000,
    ) -> None: ...
    def request(self, request: dict[str, Any]) -> Any:
        """One admin request (docs/protocol.md) and its reply."""
    def open_space(
        self,
        *,
        model: str,
        runtime: str,
        layers: _Seq[Layer],
        detail: str = "",
        chunk_tokens: int = 32,
        heads_per_chunk: int = 1,
        preset: str | None = None,
        private: bool = False,
        rope_pairing: Literal["none", "halves", "neighbours"] = "none",
        rope_frequencies: list[float] = [],
        rope_positions: int = 0,
    ) -> Space: ...
    def objects_submit(
        self,
        verb: Literal["set", "get", "exists", "delete"],
        keys: _Seq[bytes],
        values: _Seq[_Array] | None = None,
    ) -> int:
        """Queues a batch; the value buffers are held until its results are polled."""
    def objects_poll(self, room: int = 256, timeout_ms: int = 0) -> list[tuple[int, int, int, int]]:
        """(batch, index, status, value_bytes) of what has finished."""
    def objects_event_fd(self) -> int: ...

class Space(_Closable):
    """One model + runtime + KV layout: what may be mixed."""
    @property
    def client(self) -> Client: ...
    @property
    def layers(self) -> list[Layer]: ...
    @property
    def dtype(self) -> str: ...
    def match(self, ids: _Ids) -> Match: ...
    def create(
        self, ids: _Ids | None = None, name: str | None = None, private: bool = False
    ) -> Sequence:
        """A new sequence that shares the longest stored prefix of `ids`; its length says how much
        that is."""
    def open(
        self, name: str | None = None, id: int | None = None, writable: bool = True
    ) -> Sequence:
        """Busy where another client, or this one, writes; writable=False reads what is sealed."""

class Sequence(_Closable):
    """An append-only stream of tokens with their K and V. Calls from several threads wait for each
    other."""
    @property
    def id(self) -> int: ...
    @property
    def space(self) -> Space: ...
    @property
    def length(self) -> int: ...
    @property
    def layer_count(self) -> int: ...
    @property
    def match(self) -> Match | None: ...
    def __len__(self) -> int: ...
    def tokens(self, first: int = 0, count: int | None = None) -> NDArray[np.uint32]:
        """[count, 4]: id, position, flags, span."""
    def texts(self, first: int = 0, count: int | None = None) -> list[bytes]:
        """The text of each token, b"" where none was given. Together they are UTF-8."""
    def append(
        self,
        ids: _Ids,
        positions: _Ids | None = None,
        flags: _Ids | None = None,
        spans: _Ids | None = None,
        texts: _Seq[str | bytes] | None = None,
    ) -> None:
        """Begins a piece of 1 to 1,024 tokens; each layer is then written. `texts`: of each token,
        at most 1,024 bytes."""
    def write(self, layer: int, first: int, k: _Array, v: _Array) -> None:
        """K and V, [kv_heads, n, dim] with a contiguous last dimension, of tokens first ... of the
        piece."""
    def read(
        self, layer: int, first: int, count: int, k: _Array | None = None, v: _Array | None = None
    ) -> tuple[Any, Any]:
        """Exact rows [kv_heads, count, dim], into the given contiguous arrays or new numpy ones
        (bf16 as uint16)."""
    def observe_queries(self, layer: int, q: Any) -> None: ...
    def finish_piece(self) -> None: ...
    def abort_piece(self) -> None: ...
    def commit(self) -> None:
        """Returns when every token so far survives kill -9 and power loss."""
    def truncate(self, tokens: int) -> None: ...
    def fork(
        self, tokens: int | None = None, name: str | None = None, private: bool = False
    ) -> Sequence: ...
    def view(
        self,
        *,
        budget: int = 0,
        sinks: int = 16,
        window: int = 64,
        capacity: int = 0,
        preset: str = "",
        wait_ms: int = 10000,
    ) -> View: ...

class ViewStats(TypedDict):
    steps: int
    selections: int
    rows_attended: int
    rows_fetched: int
    chunks_fetched: int
    bytes_host: int
    bytes_disk: int
    wait_ns: int
    client_bytes: int
    abstract_bytes: int
    units_scored: int
    units_missing: int
    rows_selected: int
    mass_sum: float
    rows_base: int
    rows_refined: int
    steps_refined: int
    base_bytes: int
    base_mass_sum: float
    base_error_sum: float
    steps_repeated: int
    steps_waited: int
    rows_waited: int
    bound_steps: int
    bound_sum: float
    bound_max: float
    rows_rebuilt: int
    rows_hinted: int
    bound_last: float
    preset: str  # its name behind a "#", and its parts as TOML

class View(_Closable):
    """One way to read a sequence: a preset and a budget."""
    def attend(
        self,
        layer: int,
        q: _Array,
        scale: float | None = None,
        out: _Array | None = None,
        lse: _Array | None = None,
    ) -> tuple[Any, Any]:
        """q: float32 [query_heads, dim] or [queries, query_heads, dim], the newest tokens. (out,
        log-sum-exp)."""
    def look_ahead(self, layer: int, q: _Array, scale: float | None = None) -> None:
        """q: float32 [query_heads, dim], a guess of the layer's next queries: what they would
        choose comes meanwhile. Never waits, changes no result."""
    @property
    def looks_ahead(self) -> bool:
        """Whether the preset makes use of look_ahead()."""
    @property
    def kernels(self) -> str:
        """The kernels that the view runs; the environment variable KVTIER_KERNELS chooses."""
    def stats(self) -> ViewStats: ...
