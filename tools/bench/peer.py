"""The peers of kvtier-bench that need torch: loading a saved whole cache, and SDPA on a preallocated one.

kvtier-bench runs this text with a Python that has torch and safetensors, and asks line by line:

    save DIR TOKENS     saves a cache of SmolLM2-135M's geometry in float16, by torch.save and by safetensors, and
                        finds whether a step over it is faster with the groups folded
    torch DIR           seconds of torch.load and one step of attention over all of it, the faster way
    safetensors DIR     the same through safetensors
    allocate TOKENS     a preallocated cache in float32
    model               a model of SmolLM2-135M's shape in float32, its weights drawn by chance; needs transformers
    prefill TOKENS      seconds by the clock of its forward pass over so many tokens, without the output layer
    sdpa                seconds of one decode step on it: K and V of a token written, attention, all layers
    folded              the same with the queries of a group as queries of one KV head: K and V are read once

Every answer is one line: `ok NUMBER` or `error TEXT`.
"""
import gc
import sys
import time

import safetensors.torch
import torch
import torch.nn.functional as F

LAYERS, KV_HEADS, QUERY_HEADS, DIM = 30, 3, 9, 64


def attend(keys, values, fold):
    heads, queries = (KV_HEADS, QUERY_HEADS // KV_HEADS) if fold else (QUERY_HEADS, 1)
    query = torch.full((1, heads, queries, DIM), 0.05, dtype=keys.dtype)
    return F.scaled_dot_product_attention(query, keys, values, enable_gqa=not fold)


def step(cache, fold):
    return sum(attend(cache[f"k{layer}"], cache[f"v{layer}"], fold).float().sum().item() for layer in range(LAYERS))


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def save(directory, tokens):
    generator = torch.Generator().manual_seed(1)
    cache = {}
    for layer in range(LAYERS):
        for name in "kv":
            # Small finite floats of random bits: nothing that a disk could compress.
            bits = torch.randint(0x2C00, 0x3000, (1, KV_HEADS, int(tokens), DIM), generator=generator, dtype=torch.int16)
            cache[f"{name}{layer}"] = bits.view(torch.float16)
    torch.save(cache, directory + "/cache.pt")
    safetensors.torch.save_file(cache, directory + "/cache.safetensors")
    step(cache, False)
    best = [min(seconds(lambda fold=fold: step(cache, fold)) for _ in range(3)) for fold in (False, True)]
    return best[1] < best[0]


def timed_load(load, path, fold):
    gc.collect()
    return seconds(lambda: step(load(path), fold))


class Peer:
    def __init__(self):
        self.cache, self.length, self.decoder, self.fold = None, 0, None, False

    def allocate(self, tokens):
        self.length = int(tokens)
        shape = (1, KV_HEADS, self.length + 4096, DIM)
        self.cache = [(torch.rand(shape) - 0.5, torch.rand(shape) - 0.5) for _ in range(LAYERS)]
        return 0

    def model(self):
        from transformers import LlamaConfig, LlamaModel

        self.decoder = LlamaModel(LlamaConfig(
            hidden_size=QUERY_HEADS * DIM, intermediate_size=1536, num_hidden_layers=LAYERS, num_attention_heads=QUERY_HEADS,
            num_key_value_heads=KV_HEADS, vocab_size=49152, max_position_embeddings=8192)).eval()
        return 0

    def prefill(self, tokens):
        ids = torch.arange(int(tokens))[None]
        return seconds(lambda: self.decoder(ids, use_cache=True))

    def sdpa(self, fold=False):
        start = time.perf_counter()
        row = torch.full((1, KV_HEADS, DIM), 0.05)
        self.length += 1
        for keys, values in self.cache:
            keys[:, :, self.length - 1] = row
            values[:, :, self.length - 1] = row
            attend(keys[:, :, :self.length], values[:, :, :self.length], fold)
        return time.perf_counter() - start

    def answer(self, word, *arguments):
        if word == "save":
            self.fold = save(*arguments)
            return 0
        if word == "torch":
            return timed_load(torch.load, arguments[0] + "/cache.pt", self.fold)
        if word == "safetensors":
            return timed_load(safetensors.torch.load_file, arguments[0] + "/cache.safetensors", self.fold)
        words = {"allocate": self.allocate, "model": self.model, "prefill": self.prefill, "sdpa": self.sdpa,
                 "folded": lambda: self.sdpa(True)}
        return words[word](*arguments)


def main():
    torch.set_grad_enabled(False)
    peer = Peer()
    print("ok 0", flush=True)
    for line in sys.stdin:
        try:
            print(f"ok {peer.answer(*line.split()):.9f}", flush=True)
        except Exception as problem:  # told to who asked, whatever it is
            print("error", str(problem).splitlines()[0], flush=True)


main()
