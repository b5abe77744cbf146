"""What a user of the wheel does first, with the interpreter that it was installed into: the daemon
it brought starts by itself, rows come back, the command line is there. Run by tools/check
(check_wheel in tools/lib.sh)."""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np

with tempfile.TemporaryDirectory(prefix="kvtier-wheel-") as directory:
    os.environ.pop("KVTIER_DAEMON", None)
    os.environ |= {
        "KVTIER_SOCKET": f"{directory}/s/kvtierd.sock",
        "KVTIER_STORE_PATH": f"{directory}/store",
        "KVTIER_HOST_ARENA_BYTES": "64MiB",
        "KVTIER_HOST_LEASED_BYTES_PER_CLIENT_MAX": "32MiB",
    }
    os.mkdir(f"{directory}/s", 0o700)
    import kvtier

    scripts = Path(sysconfig.get_path("scripts"))
    assert Path(kvtier.__file__).is_relative_to(sys.prefix), kvtier.__file__
    assert os.environ["KVTIER_DAEMON"] == str(scripts / "kvtierd"), os.environ["KVTIER_DAEMON"]
    client = kvtier.Client()
    try:
        space = client.open_space(
            model="m", runtime="wheel", layers=[kvtier.Layer(kv_heads=2, query_heads=4, dim=8)]
        )
        rows = np.arange(48, dtype=np.float32).reshape(2, 3, 8)
        with space.create([], name="first") as sequence:
            sequence.append([1, 2, 3])
            sequence.write(0, 0, rows, -rows)
            sequence.commit()
            assert np.array_equal(sequence.read(0, 0, 3)[1], -rows)
        shown = json.loads(
            subprocess.run(
                [scripts / "kvtier", "show", "first", "--json"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        assert shown["tokens"] == 3, shown
    finally:
        client.request({"op": "stop"})
    print(f"kvtier {kvtier.__version__}: the wheel works")
