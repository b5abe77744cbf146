"""Which engine runs which preset: the views' own table (kvtier.presets) and the reference's, put
together. Nothing here names a preset."""

from __future__ import annotations


def runs(files: bool = True) -> dict[str, tuple[str, ...]]:
    """Name -> engines, as --engine calls them: what views take first, with files of the user or
    without."""
    import kvtier

    from .reference import PRESETS

    listed = kvtier.presets()["presets"]
    views = [preset["name"] for preset in listed if files or preset["from"] == "built-in"]
    return {
        name: ("daemon",) * (name in views) + ("reference",) * (name in PRESETS)
        for name in dict.fromkeys([*views, *PRESETS])
    }


def full(engine: str) -> list[str]:
    """The built-in presets that --engine runs; both: that the reference has."""
    wanted = "reference" if engine == "both" else engine
    return [name for name, engines in runs(files=False).items() if wanted in engines]


def table() -> str:
    """Of --list: a line per preset, and what runs it."""
    words = {
        ("daemon", "reference"): "daemon, reference",
        ("daemon",): "daemon",
        ("reference",): "reference only: needs --engine reference",
    }
    rows = runs()
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {words[engines]}" for name, engines in rows.items())
