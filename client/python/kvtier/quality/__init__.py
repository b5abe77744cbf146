"""kvtier-quality: what a retrieval preset costs in quality, on a real model and any text.

    kvtier-quality --text prose --preset codes,quest --budget 256,1024

A context is read once with full attention; then the tokens behind it go through the model one step
each (teacher forcing), attending through a preset, and their predictions are compared with those of
full attention: perplexity, Kullback-Leibler divergence, agreement of the first choice. The preset
runs in kvtier's daemon, or in `reference`, an independent implementation in plain torch.
docs/retrieval.md tells the results.
"""
