"""kvtier: the KV cache of language models in tiers, host memory and NVMe, shared by every runtime
of the user.

    client = kvtier.Client()                       # starts kvtierd if nobody listens
    layer = kvtier.Layer(kv_heads=3, query_heads=9, dim=64)
    space = client.open_space(model="...", runtime="...", layers=[layer] * 30)
    with space.create(ids, name="report") as sequence:  # shares the longest stored prefix of ids
        sequence.append(ids[len(sequence):])
        ...                                             # write(layer, first, k, v), each layer
        sequence.commit()                               # survives kill -9 from here on
        out, lse = sequence.view(budget=1024).attend(layer, q)

Arrays are numpy arrays or torch CPU tensors, both ways without a copy. Errors are subclasses of
kvtier.Error. For transformers see kvtier.transformers.
"""

import os as _os
import sysconfig as _sysconfig

if "KVTIER_DAEMON" not in _os.environ:  # the daemon that was installed with this package, if it was
    _daemon = _os.path.join(_sysconfig.get_path("scripts"), "kvtierd")
    if _os.access(_daemon, _os.X_OK):
        _os.environ["KVTIER_DAEMON"] = _daemon

from ._kvtier import (  # noqa: E402
    BUDGET_PROFILE,
    Busy,
    Client,
    Corrupt,
    DaemonLost,
    DeviceError,
    Error,
    Exists,
    Full,
    Internal,
    InvalidArgument,
    Layer,
    Limit,
    Match,
    Miss,
    NotFinite,
    NotFound,
    Permission,
    Sequence,
    Space,
    Stale,
    Timeout,
    Unsupported,
    View,
    WrongSpace,
    abi_version,
    presets,
    strerror,
    version,
)
from . import arguments as _arguments  # noqa: E402

_arguments.explain(Client, Space, Sequence, View)
presets, strerror = map(_arguments.explained, (presets, strerror))

__version__ = version()
__all__ = [
    "BUDGET_PROFILE",
    "Busy",
    "Client",
    "Corrupt",
    "DaemonLost",
    "DeviceError",
    "Error",
    "Exists",
    "Full",
    "Internal",
    "InvalidArgument",
    "Layer",
    "Limit",
    "Match",
    "Miss",
    "NotFinite",
    "NotFound",
    "Permission",
    "Sequence",
    "Space",
    "Stale",
    "Timeout",
    "Unsupported",
    "View",
    "WrongSpace",
    "abi_version",
    "presets",
    "strerror",
    "version",
]
