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
    return np.sin(phase + 0.01 * token * np.sqrt(place + 1) + layer + head).astype(np.float32)


def queries(layer: int, token: int) -> np.ndarray:
    """[query head, dim]: those that look for one token. A budget finds it and its neighbours; for
    queries that look nowhere, as random ones do, every row counts the same and none can be left."""
    return 6 * rows(layer, token, 1, 0.0)[:, 0].repeat(QUERY_HEADS // HEADS, axis=0)


def forward(sequence: kvtier.Sequence, count: int, *views: kvtier.View) -> list[float]:
    """One piece: tokens, then K and V layer by layer. Returns a number of what attention gives in
    the last layer, for each view."""
    first = sequence.length
    sequence.append(np.arange(first, first + count, dtype=np.uint32) % 997)
    for layer in range(LAYERS):
        sequence.write(layer, 0, rows(layer, first, count, 0.0), rows(layer, first, count, 1.0))
        gives = [view.attend(layer, queries(layer, first // 2))[0][0, 0] for view in views]
    sequence.finish_piece()
    return gives


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
        # Rows per head and layer.
        with sequence.view(budget=256) as view, sequence.view(budget=0) as every:
            for _ in range(4):
                few, all_ = forward(sequence, 1, view, every)
                print(f"token {sequence.length - 1}: attention gives {few:.6f}, exactly {all_:.6f}")
            stats, exact = view.stats(), every.stats()
    print("the difference is the weight of the rows that the budget leaves out")
    print(
        f"{stats['rows_attended']} rows attended (4 steps, {LAYERS} layers, {HEADS} heads), "
        f"{stats['rows_fetched']} of them fetched; exactly: {exact['rows_attended']}"
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
