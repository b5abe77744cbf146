"""An exact in-memory reference of every retrieval preset, in plain torch: no kernels, no daemon,
nothing of kvtier.

It holds all K and V and computes what a preset would attend to, step by step, so that its result
can be compared with full attention (how good is the preset?) and with the daemon (does kvtier do
what the preset says?). One file per part, as in the engine:

    partition -> abstract -> query -> score -> group -> budget -> trigger -> residency, precision

`presets.PRESETS` is the table, `engine.Reference` runs a row of it, `attention` puts it into a
transformers model.

Shapes, everywhere: H KV heads, g query heads per KV head, n steps (new tokens), C stored rows,
T = C + tail rows in sight of the last step, U units, d head dimension. Keys are those that
attention sees (after RoPE). Step i sees rows [0, T - n + i].
"""

from .engine import Reference
from .presets import PRESETS, Preset, find

__all__ = ["PRESETS", "Preset", "Reference", "find"]
