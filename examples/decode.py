"""A runtime in miniature, the twin of decode.cc: stores the KV of a context, decodes over it on a
budget, and has it back by name.

    .venv/bin/python examples/decode.py NAME [TOKENS]

The first run with a name fills the sequence; later ones, also after a restart of the machine, find
it stored. Every run decodes four tokens more, which are stored, too, so the numbers go on. The
"model" here is a formula: a real runtime puts its own keys, values and queries in the same places.
For a real model in transformers see docs/transformers.md.
"""

import argparse
import sys

import kvtier
import numpy as np

LAYERS, HEADS, QUERY_HEADS, DIM = 2, 2, 4, 32


def rows(layer: int, first: int, count: int, phase: float) -> np.ndarray:
    """[head, token, dim]: what a forward pass would leave."""
    head = np.arange(HEADS)[:, None, None]
    token = np.arange(first, first + count)[None, :, None]
    place = np.arange(DIM)[None, None, :]
    return np.sin(phase + 0.001 * token * (place + 1) + layer + head).astype(np.float32)


def forward(sequence: kvtier.Sequence, count: int, view: kvtier.View | None = None) -> None:
    """One piece: tokens, then K and V layer by layer; with a view, attends to everything so far."""
    first = sequence.length
    sequence.append(np.arange(first, first + count, dtype=np.uint32) % 997)
    for layer in range(LAYERS):
        sequence.write(layer, 0, rows(layer, first, count, 0.0), rows(layer, first, count, 1.0))
        if view is not None:
            out, _ = view.attend(layer, np.full((QUERY_HEADS, DIM), 0.1, np.float32))
    sequence.finish_piece()
    if view is not None:
        print(f"token {first}: attention gives {out[0, 0]:.6f}")


def main(name: str, context: int) -> None:
    client = kvtier.Client()  # starts kvtierd if nobody listens
    layer = kvtier.Layer(kv_heads=HEADS, query_heads=QUERY_HEADS, dim=DIM)
    space = client.open_space(
        model="example-formula", runtime="kvtier-example.py/1", layers=[layer] * LAYERS
    )
    try:
        sequence = space.open(name)
    except kvtier.NotFound:
        sequence = space.create(name=name)
    with sequence:  # closing seals what is in the tail
        print(f"{sequence.length} tokens are stored")
        while sequence.length < context:
            forward(sequence, min(1024, context - sequence.length))
        sequence.commit()  # from here on it survives kill -9 and power loss
    # Opened anew, so that the first run decodes as later ones do: the tokens of a tail are always
    # attended, beside the budget, and a sequence that was just filled has many of them.
    with space.open(name) as sequence:
        with sequence.view(budget=256) as view:  # rows per KV head and layer; 0: everything
            for _ in range(4):
                forward(sequence, 1, view)
            stats = view.stats()
        print(
            f"{stats['rows_attended']} rows attended (4 steps, {LAYERS} layers, {HEADS} heads), "
            f"{stats['rows_fetched']} of them fetched"
        )


def tokens(text: str) -> int:
    if not 1 <= int(text) <= 1_000_000:
        raise ValueError
    return int(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Stores a context and decodes over it on a budget.")
    parser.add_argument("name", help="of the sequence that is made, or found again")
    parser.add_argument("tokens", type=tokens, nargs="?", default=5000, help="1 to 1000000 (5000)")
    arguments = parser.parse_args()
    try:
        main(arguments.name, arguments.tokens)
    except kvtier.Error as error:
        sys.exit(f"{type(error).__name__}: {error}")
