"""kvtier calibrate: the codebook of the space that the transformers adapter opens, through the
command as a user calls it, on the real model with short contexts and on a small random one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from conftest import PATHS

import kvtier
from kvtier import transformers as adapter
from kvtier.model_space import fingerprint
from kvtier.quality import calibrate, run
from kvtier.quality.__main__ import main
from kvtier.quality.model import Judge

CONTEXT = 512


def listed(client) -> list[dict]:
    return sorted(client.request({"op": "codebooks"})["codebooks"], key=lambda one: one["id"])


def names(client) -> list[str]:
    return [sequence["name"] for sequence in client.request({"op": "ls"})["sequences"]]


def number_of(space) -> int:
    """As the daemon calls its spaces."""
    with space.create() as sequence:  # an empty one does not outlive it
        return space.client.request({"op": "show", "target": sequence.id})["space"]


def files(daemon) -> dict[str, bytes]:
    folder = daemon.directory / "codebooks"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def daemon(daemon, tmp_path):
    daemon.directory = tmp_path / "store"
    return daemon


@pytest.fixture
def one_loaded(loaded, monkeypatch):
    """The command in this process, with the model that the session has already."""
    model, tokenizer, gguf = loaded
    monkeypatch.setattr(
        calibrate.judges, "load", lambda *_, **__: Judge(model, tokenizer, "", [gguf])
    )
    return model, tokenizer, gguf


def test_views_of_the_model_choose_at_once_by_what_calibrate_made(
    daemon, one_loaded, text_ids, capsys
):
    model, tokenizer, gguf = one_loaded
    done = subprocess.run(
        [sys.executable, "-m", "kvtier.quality", "--calibrate"]
        + ["--context", str(CONTEXT), "--json", "-"],
        env=os.environ | PATHS | daemon.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"reading {CONTEXT} tokens to calibrate" in done.stderr
    (line,) = done.stdout.splitlines()
    made = json.loads(line)["codebooks"]
    # With the file's hash, and as a program opens it that does not give the file.
    assert len({entry["space"] for entry in made}) == len({one["model"] for one in made}) == 2
    for entry in made:
        assert entry["made"] and entry["tokens"] == CONTEXT and entry["kind"] == "codes:4/tokens"
        assert entry["positions"] == model.config.max_position_embeddings > CONTEXT
        assert entry["query_tokens"] == 64 and entry["keys_per_head"] == 4096
    client = daemon.client()
    assert names(client) == []
    by_id = sorted(made, key=lambda one: one["id"])  # ids are random
    known = [{k: v for k, v in e.items() if k not in ("made", "tokens")} for e in by_id]
    assert listed(client) == known
    before = files(daemon)
    assert len(before) == 2

    # The space of a later chat is the very same, and its first view takes the codebook.
    adapter.install(model)
    for entry, given in zip(made, ([gguf], [])):
        space = adapter.open_space(client, model, tokenizer, files=given)
        assert number_of(space) == entry["space"]
    cache = adapter.attach(space, text_ids, name="chat")
    adapter.prefill(model, cache, text_ids[:400])
    cache.close()
    cache = adapter.resume(space, "chat", budget=64, window=16)
    adapter.prefill(model, cache, text_ids[:401])
    stats = cache.view.stats()
    assert stats["units_missing"] == 0 and stats["units_scored"] == 400 * 30 * 3
    assert 0 < stats["rows_selected"] <= 64 * 30 * 3
    cache.close()
    assert listed(client) == known

    # Again: nothing changes, and that is said.
    with daemon.settings():
        assert main(["--calibrate", "--text", "dialogue"]) == 0
    out, error = capsys.readouterr()
    assert out.count("already, which stays as it is; 4096 keys per head, 64 query tokens") == 2
    assert all(f"codebook {entry['id']} already" in out for entry in made)
    assert "reading" not in error
    assert files(daemon) == before and names(client) == ["chat"]

    # And after a restart.
    daemon.stop()
    client = daemon.client()
    assert [(e["id"], e["state"]) for e in listed(client)] == [(e["id"], "stored") for e in by_id]
    with daemon.settings():
        assert main(["--calibrate", "--json", "-"]) == 0
    again = json.loads(capsys.readouterr().out)["codebooks"]
    assert [(e["id"], e["made"]) for e in again] == [(e["id"], False) for e in made]
    assert files(daemon) == before


@pytest.fixture
def small(loaded, tmp_path):
    """A directory with a random model of two layers in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    _, tokenizer, _ = loaded
    torch.manual_seed(5)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )
    directory = tmp_path / "small"
    LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def test_a_model_of_a_directory_is_loaded_as_programs_load_it(daemon, small, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def command() -> dict:
        with daemon.settings():
            assert main(["--calibrate", "--model", small, "--text", "prose", "--json", "-"]) == 0
        (entry,) = json.loads(capsys.readouterr().out)["codebooks"]
        return entry

    made = command()
    assert made["made"] and made["tokens"] == made["positions"] == 1024
    client = daemon.client()
    model = AutoModelForCausalLM.from_pretrained(small)
    assert model.dtype == torch.bfloat16
    space = adapter.open_space(client, model, AutoTokenizer.from_pretrained(small))
    assert number_of(space) == made["space"]
    # One that cannot be read any more is made anew.
    daemon.stop()
    (path,) = (daemon.directory / "codebooks").iterdir()
    path.write_bytes(path.read_bytes()[:5000] + b"x" + path.read_bytes()[5001:])
    again = command()
    assert again["made"] and again["id"] != made["id"]
    client = daemon.client()
    assert [entry["id"] for entry in listed(client)] == [again["id"]] and names(client) == []


def test_the_default_preset_is_that_of_the_models_profile(
    daemon, small, tmp_path, monkeypatch, capsys
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(small)
    name = fingerprint(model, AutoTokenizer.from_pretrained(small))
    profile = tmp_path / "kvtier" / "profiles" / "one.toml"
    profile.parent.mkdir(parents=True)

    def command(preset: str) -> int:
        profile.write_text(f'model = "{name}"\npreset = "{preset}"\nbudget = 64\n')
        with daemon.settings():
            return main(["--calibrate", "--model", small, "--text", "prose", "--preset", "default"])

    assert command("clusters") == 2
    assert "clusters needs no codebook; codes, " in capsys.readouterr().err
    mine = profile.parent.parent / "presets" / "mine.toml"
    mine.parent.mkdir()
    mine.write_text('base = "codes"\nabstract = "codes:8"\n')
    assert command("mine") == 0 and ", codes:8/tokens): codebook " in capsys.readouterr().out


def test_a_codebook_in_memory_only_is_no_success(daemon, small, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def command(*more) -> int:
        with daemon.settings():
            return main(["--calibrate", "--model", small, "--text", "prose", *more])

    client = daemon.client()
    model = AutoModelForCausalLM.from_pretrained(small)
    tokenizer = AutoTokenizer.from_pretrained(small)
    space = adapter.open_space(client, model, tokenizer)
    adapter.install(model)
    with space.create(private=True) as secret:
        cache = adapter.KvtierCache(secret, kv_dtype=space.dtype, preset="full")
        adapter.prefill(model, cache, list(range(2100)))
        for _ in range(100):  # until the first 2,048 are sealed
            secret.view(preset="codes", budget=64).close()
            if listed(client):
                break
            time.sleep(0.05)
        (entry,) = listed(client)
        assert entry["in_memory"] and not files(daemon)
        assert command("--json", "-") == 1
        told = json.loads(capsys.readouterr().out)
        assert not told["ok"] and [one["id"] for one in told["codebooks"]] == [entry["id"]]
        assert told["code"] == 61
        assert command() == 1
        assert "in memory only, because it was made from private" in capsys.readouterr().err
    daemon.stop()
    assert command() == 0 and len(files(daemon)) == 1


def test_every_text_is_read_and_none_is_most(loaded):
    model, tokenizer, _ = loaded
    assert calibrate.parts([100, 900, 900], 1000) == [100, 450, 450]
    assert calibrate.parts([5, 5], 1000) == [5, 5] and calibrate.parts([900], 1000) == [900]
    assert calibrate.parts([900, 10, 300], 600) == [295, 10, 295]
    contents = ["One two three. " * 500, "import os\n" * 500]
    ids = calibrate.ids_of(model, tokenizer, contents, 400)
    each = [tokenizer(text, add_special_tokens=False).input_ids[:200] for text in contents]
    assert ids == each[0] + each[1]
    longest = model.config.max_position_embeddings
    assert len(calibrate.ids_of(model, tokenizer, ["One two three. " * 5000], None)) == longest
    with pytest.raises(run.TooShort, match="the model takes 8192 tokens"):
        calibrate.ids_of(model, tokenizer, contents, 8193)


def test_nothing_stays_of_what_does_not_end(daemon, loaded):
    model, tokenizer, gguf = loaded
    client = daemon.client()
    space = adapter.open_space(client, model, tokenizer, files=[gguf])
    with pytest.raises(run.TooShort, match="6 tokens to calibrate on; a codebook is made from at"):
        calibrate.calibrate(space, model, tokenizer, ["one two three four five six"])
    assert names(client) == []
    pieces = []

    def interrupt(*_):
        pieces.append(names(client))
        if len(pieces) == 3:
            raise KeyboardInterrupt

    hook = model.base_model.layers[7].register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            calibrate.calibrate(space, model, tokenizer, ["One two three. " * 200], context=512)
    finally:
        hook.remove()
    assert pieces == [[f"calibration-{os.getpid()}"]] * 3
    assert names(client) == [] and listed(client) == []


@pytest.mark.parametrize(
    "arguments, code, says",
    [
        (["--preset", "queste"], 2, "no such preset: queste; there are codes, codes-lookahead"),
        (["--preset", "pqcache"], 2, "pqcache needs no codebook; codes, codes-lookahead, progress"),
        (["--preset", "codes,quest"], 2, "--calibrate makes the codebook of one preset"),
        (["--text", "nowhere.txt"], 2, "no such text: nowhere.txt"),
        (["--context", "255"], 2, "--context 255: at least 256 make a codebook"),
        (["--model", "nowhere.gguf"], 2, "no such file: nowhere.gguf"),
        (["--model", "./nowhere"], 2, "no model at ./nowhere\n"),
        (["--tune", "0.1"], 2, "--calibrate measures nothing: leave out --tune"),
        (["--budget", "64"], 2, "--calibrate measures nothing: leave out --budget"),
    ],
)
def test_what_cannot_work_is_said(daemon, capsys, arguments, code, says):
    with daemon.settings():
        assert main(["--calibrate", *arguments]) == code
    out, error = capsys.readouterr()
    assert says in error and not out


def test_without_a_daemon(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("KVTIER_SOCKET", str(tmp_path / "s" / "kvtierd.sock"))
    monkeypatch.setenv("KVTIER_DAEMON", str(tmp_path / "kvtierd"))
    assert main(["--calibrate"]) == 1
    assert "KVTIER_DAEMON names " in capsys.readouterr().err
    assert main(["--calibrate", "--json", "-"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert not answer["ok"] and answer["code"] and "KVTIER_DAEMON names " in answer["error"]
