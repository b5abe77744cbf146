"""The module kvtier: arrays both ways, every class of error, sequences, objects."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PATHS, fill, open_space
from reference import ReferenceSequence

import kvtier
from kvtier import arguments


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_rows_come_back_bit_for_bit(client, dtype):
    space = open_space(client, dtype=dtype)
    ids = list(range(700))
    with space.create() as sequence:
        k, v = fill(sequence, space, ids, piece=333)
        assert sequence.length == len(sequence) == 700
        for first, count in ((0, 700), (1, 1), (63, 130), (699, 1)):
            for layer in range(2):
                got_k, got_v = sequence.read(layer, first, count)
                np.testing.assert_array_equal(got_k, k[layer][:, first : first + count])
                np.testing.assert_array_equal(got_v, v[layer][:, first : first + count])


def test_torch_bfloat16_both_ways(client):
    space = open_space(client, dtype="bf16")
    k = torch.randn(2, 5, 16, dtype=torch.bfloat16)
    with space.create() as sequence:
        sequence.append([1, 2, 3, 4, 5])
        for layer in range(2):
            sequence.write(layer, 0, k, k + 1)
        out_k, out_v = torch.empty_like(k), torch.empty_like(k)
        given = sequence.read(1, 0, 5, out_k, out_v)
        assert given[0] is out_k
        assert torch.equal(out_k, k) and torch.equal(out_v, k + 1)
        as_numpy, _ = sequence.read(1, 0, 5)
        assert as_numpy.dtype == np.uint16


def test_strided_rows_are_taken_as_they_lie(space):
    """[tokens, heads, dim] as a model has it before the transpose: no copy is needed, rows are
    contiguous."""
    k = torch.randn(7, 2, 16)
    with space.create() as sequence:
        sequence.append(range(7))
        for layer in range(2):
            sequence.write(layer, 0, k[:3].transpose(0, 1), k[:3].transpose(0, 1))
            sequence.write(layer, 3, k[3:].transpose(0, 1), k[3:].transpose(0, 1))
        np.testing.assert_array_equal(sequence.read(0, 0, 7)[0], k.transpose(0, 1).numpy())


class Exporter:
    """An array of some other library: nothing but DLPack."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **kwargs):
        return self._array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def test_dlpack_both_ways(space):
    k = torch.randn(2, 3, 16)
    with space.create() as sequence:
        sequence.append([1, 2, 3])
        for layer in range(2):
            sequence.write(layer, 0, Exporter(k), Exporter(2 * k))
        into = torch.zeros(2, 3, 16), torch.zeros(2, 3, 16)
        sequence.read(0, 0, 3, *map(Exporter, into))
        assert torch.equal(into[0], k) and torch.equal(into[1], 2 * k)
        rows, _ = sequence.read(0, 0, 3)
        assert torch.equal(torch.from_dlpack(rows), k)
        sequence.finish_piece()
        tokens = torch.from_dlpack(sequence.tokens())
        assert tokens[:, 0].tolist() == [1, 2, 3]
        out = torch.zeros(4, 16)
        given, _ = sequence.view().attend(0, Exporter(torch.ones(4, 16)), 0.25, out)
        assert given is out and out.abs().sum() > 0


def test_results_are_never_written_to_a_copy(client, space):
    """An output of another dtype or not contiguous is refused: converted, it would stay as it
    was."""
    with space.create() as sequence:
        fill(sequence, space, [1, 2, 3])
        view, q = sequence.view(), np.ones((4, 16), np.float32)
        for out in (
            np.zeros((4, 16)),
            np.zeros((4, 32), np.float32)[:, ::2],
            np.zeros((4, 8), np.float32),
        ):
            with pytest.raises(kvtier.InvalidArgument, match="float32 and contiguous"):
                view.attend(0, q, out=out)
    for verb, value in (
        ("get", np.zeros((4, 32), np.uint8)[:, ::2]),
        ("get", b"read only"),
        ("set", "text"),
        ("set", np.zeros((4, 32), np.uint8)[:, ::2]),
    ):
        with pytest.raises(kvtier.InvalidArgument, match="contiguous"):
            client.objects_submit(verb, [b"key"], [value])


def test_attention_agrees_with_the_reference(space):
    ids = list(range(300))
    reference = ReferenceSequence(2, 2, 16)
    with space.create() as sequence:
        k, v = fill(sequence, space, ids)
        reference.append(ids)
        for layer in range(2):
            reference.write(layer, 0, torch.tensor(k[layer]), torch.tensor(v[layer]))
        view, oracle = sequence.view(), reference.view()
        for queries in (1, 5):
            q = np.random.default_rng(1).standard_normal((queries, 4, 16), dtype=np.float32)
            out, lse = view.attend(1, q)
            want, want_lse = oracle.attend(1, q)
            np.testing.assert_allclose(out, want, atol=1e-4)
            np.testing.assert_allclose(lse, want_lse, atol=1e-4)
        single = np.ascontiguousarray(q[0])
        assert view.attend(0, single)[0].shape == (4, 16)
        into = torch.empty(4, 16)
        view.attend(0, single, 0.5, into)
        np.testing.assert_allclose(into.numpy(), oracle.attend(0, single, 0.5)[0], atol=1e-4)
        assert view.stats()["steps"] >= 4


def test_tokens_positions_flags_and_spans(space):
    with space.create() as sequence:
        sequence.append([9, 8, 7], positions=[0, 1, 2], flags=[0, 2, 3], spans=[5, 5, 6])
        write_all(sequence, 3)
        assert sequence.tokens().tolist() == [[9, 0, 0, 5], [8, 1, 2, 5], [7, 2, 3, 6]]
        assert sequence.tokens(1, 1).tolist() == [[8, 1, 2, 5]]


def write_all(sequence: kvtier.Sequence, count: int) -> None:
    for layer in range(2):
        rows = np.zeros((2, count, 16), np.float32)
        sequence.write(layer, 0, rows, rows)
    sequence.finish_piece()


def test_texts_are_what_was_given(space):
    with space.create(name="words") as sequence:
        sequence.append([1, 2, 3, 4], texts=["It", b" w\xc3", b"\xa4", ""])
        write_all(sequence, 4)
        sequence.append([5])
        write_all(sequence, 1)
        assert sequence.texts() == [b"It", b" w\xc3", b"\xa4", b"", b""]
        assert b"".join(sequence.texts(0, 3)).decode() == "It w\xe4"
        sequence.commit()
    with space.open("words") as sequence:
        assert sequence.texts(1, 2) == [b" w\xc3", b"\xa4"]
        with pytest.raises(kvtier.InvalidArgument):
            sequence.texts(3, 9)
    with space.create() as sequence:
        with pytest.raises(kvtier.InvalidArgument, match="one per id"):
            sequence.append([1, 2], texts=["a"])
        with pytest.raises(kvtier.Limit, match="1025 bytes"):
            sequence.append([1, 2], texts=["a", "b" * 1025])
        sequence.append([1, 2], texts=["", "b" * 1024])
        write_all(sequence, 2)
        assert sequence.texts() == [b"", b"b" * 1024]


def test_match_names_the_first_differing_token(space):
    ids = list(range(100, 400))
    with space.create(name="matched") as sequence:
        fill(sequence, space, ids)
        sequence.commit()
    assert (space.match(ids).tokens, space.match(ids).reason) == (300, "all matched")
    other = ids[:250] + [7] + ids[251:]
    match = space.match(np.array(other, dtype=np.uint32))
    assert (match.tokens, match.differs_at, match.stored_token, match.reason) == (
        250,
        250,
        350,
        "token differs",
    )
    beyond = space.match(torch.tensor(ids + [1, 2]))
    assert (beyond.tokens, beyond.stored_token, beyond.reason) == (
        300,
        None,
        "nothing stored beyond",
    )
    assert space.match([5, 6]).reason == "nothing stored"
    with space.create(other) as shared:
        assert shared.length == 250 and shared.match.tokens == 250


def test_fork_truncate_and_reopen(space):
    ids = list(range(200))
    with space.create(name="trunk") as trunk:
        k, _ = fill(trunk, space, ids)
        with trunk.fork(120, name="branch") as branch:
            assert branch.length == 120
            np.testing.assert_array_equal(branch.read(1, 0, 120)[0], k[1][:, :120])
            fill(branch, space, [7] * 10, seed=5)
            branch.truncate(125)
            assert branch.length == 125
        assert trunk.length == 200
        trunk.commit()
    with space.open("branch", writable=False) as branch:
        assert branch.length == 125
        np.testing.assert_array_equal(branch.read(0, 100, 20)[0], k[0][:, 100:120])
        with pytest.raises(kvtier.Error):
            branch.append([1])


def test_abort_forgets_the_piece(space):
    with space.create() as sequence:
        fill(sequence, space, [1, 2, 3])
        sequence.append([4, 5])
        rows = np.ones((2, 2, 16), np.float32)
        sequence.write(0, 0, rows, rows)
        with pytest.raises(kvtier.InvalidArgument):
            sequence.finish_piece()  # layer 1 is missing
        sequence.abort_piece()
        assert sequence.length == 3


# ---- errors --------------------------------------------------------------------------------------


def test_classes_and_codes():
    assert issubclass(kvtier.Limit, kvtier.InvalidArgument) and issubclass(
        kvtier.NotFinite, kvtier.InvalidArgument
    )
    classes = [c for c in vars(kvtier).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert len(classes) == 18 and all(issubclass(c, kvtier.Error) for c in classes)


def test_errors_say_what_to_do(client, space, tmp_path):
    rows = np.zeros((2, 1, 16), np.float32)
    with space.create(name="errors") as sequence:
        with pytest.raises(kvtier.InvalidArgument, match="1024") as limit:
            sequence.append(range(1025))
        assert limit.value.code in (20, 23)
        sequence.append([1])
        bad = rows.copy()
        bad[1, 0, 3] = np.nan
        with pytest.raises(kvtier.NotFinite):
            sequence.write(0, 0, bad, rows)
        bad[1, 0, 3] = np.inf
        with pytest.raises(kvtier.NotFinite):
            sequence.write(0, 0, rows, bad)
        for k in (rows[:1], rows[:, :, :8], rows[0], rows.astype(np.float16), rows[:, :, ::-1]):
            with pytest.raises(kvtier.InvalidArgument):
                sequence.write(0, 0, k, rows)
        with pytest.raises(kvtier.InvalidArgument, match="layer 2 of 2"):
            sequence.write(2, 0, rows, rows)
        with pytest.raises(kvtier.InvalidArgument):
            sequence.write(0, 1, rows, rows)  # beyond the piece
        for layer in range(2):
            sequence.write(layer, 0, rows, rows)
        sequence.finish_piece()
        with pytest.raises(kvtier.InvalidArgument):
            sequence.read(0, 0, 2)
        with pytest.raises(kvtier.InvalidArgument):
            sequence.read(
                0, 0, 1, np.empty((2, 1, 16), np.float16), np.empty((2, 1, 16), np.float16)
            )
        with pytest.raises(kvtier.Busy):
            space.open("errors")
        with space.open("errors", writable=False) as reader, reader.fork() as fork:
            assert (sequence.length, reader.length) == (1, 0)  # what is sealed
            fork.append([1])
        with pytest.raises(kvtier.Exists):
            space.create(name="errors")
        with pytest.raises(kvtier.NotFound, match="no such preset: .*quest"):
            sequence.view(budget=64, preset="no such preset")
        mistaken = tmp_path / "mistaken.toml"
        mistaken.write_text('base = "quest"\ntrigger = "sometimes"\n')
        with pytest.raises(kvtier.InvalidArgument, match="choose one of every-step, every-n"):
            sequence.view(budget=64, preset=str(mistaken))
        with pytest.raises(kvtier.InvalidArgument, match="mistaken.toml"):
            kvtier.presets(str(mistaken))
        with pytest.raises(kvtier.InvalidArgument):
            sequence.view().attend(0, np.zeros((3, 16), np.float32))
    with pytest.raises(kvtier.NotFound):
        space.open("nobody")
    with pytest.raises(kvtier.WrongSpace):
        open_space(client).open("errors")
    with pytest.raises(kvtier.Error):
        client.request({"op": "no such operation"})


def test_queries_are_float32(space):
    """A float64 that was converted would be computed in another precision than it looks."""
    q = np.random.default_rng(2).standard_normal((4, 16))
    with space.create() as sequence:
        fill(sequence, space, [1, 2, 3])
        view = sequence.view()
        others = (q, q.astype(np.float16), q > 0, torch.tensor(q, dtype=torch.bfloat16))
        for other, name in zip(others, ("float64", "float16", "bool", "bfloat16")):
            for call in (
                lambda: view.attend(0, other),
                lambda: view.look_ahead(0, other),
                lambda: sequence.observe_queries(0, other[None]),
            ):
                with pytest.raises(kvtier.InvalidArgument, match=f"q: float32 .* this is {name}"):
                    call()
        q = q.astype(np.float32)
        for lies in (np.asfortranarray(q), q[::-1].copy()[::-1], np.repeat(q, 2, axis=1)[:, ::2]):
            np.testing.assert_array_equal(view.attend(0, lies)[0], view.attend(0, q)[0])


def test_a_refused_call_names_the_argument(client, space):
    k, floats = np.zeros((2, 1, 16), np.float32), array("f", [1])
    fixed = np.frombuffer(bytes(128), np.float32).reshape(2, 1, 16)  # read-only
    with space.create() as sequence:
        view = sequence.view()
        large = 1 << 40
        calls = [
            (lambda: sequence.view(budget=-1), r"view\(\): budget must be 0 or more, not -1"),
            (lambda: sequence.truncate(-3), "tokens must be 0 or more"),
            (lambda: sequence.write(-1, 0, k, k), "layer must be 0 or more"),
            (lambda: sequence.write(0, large, k, k), "too large: first 1099511627776"),
            (lambda: sequence.write(0, large, fixed, fixed), "too large: first 1099511627776"),
            (lambda: sequence.write(0, large, floats, memoryview(k)), "too large: first"),
            (lambda: client.objects_poll(timeout_ms=-1), "timeout_ms must be 0 or more"),
            (lambda: kvtier.Client(timeout_ms=-1), "timeout_ms must be 0 to"),
            (lambda: kvtier.Layer(kv_heads=-1, query_heads=1, dim=8), "kv_heads must be 1 to"),
            (lambda: kvtier.Layer(kv_heads=1, query_heads=1, dim=8, v_dim=0), "v_dim must be 1 to"),
            (lambda: kvtier.Layer(kv_heads=2, query_heads=3, dim=8), "of kv_heads, 2, not 3"),
            (lambda: sequence.append([1], flags=[-1]), "flags: a flat sequence of integers"),
            (lambda: sequence.append([1], texts=[5]), "texts: each a str or bytes"),
            (lambda: sequence.read(0, 0, 1, k="text"), "k must be an array"),
        ]
        for call, words in calls:
            with pytest.raises(kvtier.InvalidArgument, match=words) as refused:
                call()
            assert refused.value.code == 20
        calls = [
            (lambda: sequence.view(budget="64"), "budget must be an integer, not str '64'"),
            (lambda: sequence.read(0, 0, 1.5), "count must be an integer, not float 1.5"),
            (lambda: sequence.view(bugdet=5), "unexpected keyword argument 'bugdet'"),
            (lambda: view.attend(0, [1.0]), "q must be a numpy array, .* not list"),
            (lambda: view.attend(0, k[0], "x"), "scale must be a number or None, not str 'x'"),
            (lambda: view.attend(0, fixed, "x"), "scale must be a number or None, not str 'x'"),
            (lambda: view.attend(0, k, np.ones(3)), "scale must be a number or None, not ndarray"),
            (lambda: sequence.view(budget=torch.tensor(1.5)), "budget must be .* not Tensor"),
            (lambda: sequence.view(budget=np.ones(2)), "budget must be an integer, not ndarray"),
            (lambda: view.attend(0, torch.ones(4, 16, device="meta")), "q must .* not on meta"),
            (lambda: view.attend(0, np.array([object()])), "q must be a numpy array, .*DLPack"),
            (lambda: view.attend(0, object()), "q must be a numpy array, .* not object"),
            (lambda: space.open(5), "name must be a str or None, not int 5"),
            (lambda: client.request([]), r"request\(\): request must be a dict, not list"),
            (lambda: client.open_space(model="m", runtime="r", layers=[1]), "a list of kvtier.Lay"),
            (lambda: client.objects_submit("set", ["k"], [b""]), "keys must be a list of bytes"),
            (lambda: kvtier.strerror("x"), "status must be an integer"),
        ]
        for call, words in calls:
            with pytest.raises(TypeError, match=words):
                call()
        with pytest.raises(TypeError, match="not JSON serializable"):
            client.request({"op": object()})  # what is no refusal stays as it is


@pytest.mark.parametrize(
    "kept",
    [
        None,
        (),
        ("def f(self, x: int) -> None",),
        [{"name": "f", "args": ["x"]}],
        (("def f(self, x: int → None", None, None),),
        (("def f(self, x: int = \\0) -> None", None, None),),
        (("def f(self, x: int = default) -> None", None, (1,)),),
    ],
)
def test_signatures_of_another_nanobind_are_left_alone(kept):
    """They are private to it. A form that is not known must not make the import fail."""

    class Method:
        __name__ = "f"
        __nb_signature__ = kept

    class Class:
        f = Method()

    method = Class.f
    arguments.explain(Class)
    assert Class.f is method and arguments.explained(method) is method


def test_arrays_that_are_read_only_are_taken(space):
    rows = np.random.default_rng(3).standard_normal((2, 1, 16), dtype=np.float32)
    fixed = np.frombuffer(rows.tobytes(), np.float32).reshape(rows.shape)
    assert not fixed.flags.writeable
    with space.create() as sequence:
        sequence.append([1])
        for layer in range(2):
            sequence.write(layer, 0, fixed, memoryview(fixed))
        for got in sequence.read(0, 0, 1):
            np.testing.assert_array_equal(got, rows)


def test_closed_handles_are_stale(client):
    space = open_space(client)
    sequence = space.create()
    view = sequence.view()
    sequence.close()
    sequence.close()
    assert sequence.closed and view.closed
    for call in (lambda: sequence.length, lambda: view.stats(), lambda: sequence.append([1])):
        with pytest.raises(kvtier.Stale, match="closed"):
            call()
    space.close()
    with pytest.raises(kvtier.Stale):
        space.match([1])


def test_the_newest_handle_keeps_the_chain_alive(daemon):
    view = open_space(daemon.client()).create().view()
    daemon._clients.clear()
    assert view.stats()["steps"] == 0
    assert view.stats()["preset"].startswith('# codes\npartition = "tokens"')


# ---- threads, objects, stubs ---------------------------------------------------------------------


def test_threads_share_a_sequence_and_a_client(space):
    ids = list(range(256))
    failures: list[BaseException] = []
    with space.create() as shared:
        k, _ = fill(shared, space, ids)

        def work(number: int) -> None:
            try:
                for i in range(30):
                    got, _ = shared.read(number % 2, i, 100)
                    np.testing.assert_array_equal(got, k[number % 2][:, i : i + 100])
                with space.create() as own:
                    mine, _ = fill(own, space, ids, seed=number)
                    np.testing.assert_array_equal(own.read(0, 0, 256)[0], mine[0])
            except BaseException as error:  # noqa: BLE001 the test's own thread reports it
                failures.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


@pytest.mark.parametrize("what", ["view", "sequence", "space", "client"])
def test_close_and_the_calls_of_other_threads(daemon, what):
    """close() pulls no handle from under a call: each thread ends with Stale, at its next call."""
    client = daemon.client()
    space = open_space(client)
    sequence = space.create()
    fill(sequence, space, list(range(256)))
    view = sequence.view()
    q = np.ones((4, 16), np.float32)
    calls = {
        "view": lambda: view.attend(0, q),
        "sequence": lambda: sequence.read(0, 0, 256),
        "space": lambda: space.match([1, 2, 3]),
        "client": lambda: client.objects_poll(timeout_ms=1),
    }
    ends: list[BaseException] = []
    started = threading.Barrier(4)

    def work() -> None:
        started.wait()
        try:
            while True:
                calls[what]()
        except BaseException as error:  # noqa: BLE001 the test looks at it
            ends.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait()
    time.sleep(0.05)
    {"view": view, "sequence": sequence, "space": space, "client": client}[what].close()
    for thread in threads:
        thread.join(20)
    assert [type(e) for e in ends] == [kvtier.Stale] * 3


def results_of(client: kvtier.Client, batch: int, count: int) -> list[tuple[int, int, int, int]]:
    results: list[tuple[int, int, int, int]] = []
    while len(results) < count:
        got = client.objects_poll(timeout_ms=5000)
        assert got, "no result within 5 s"
        results += [r for r in got if r[0] == batch]
    return sorted(results, key=lambda r: r[1])


def test_opaque_objects(client):
    keys = [b"one", b"two\x00binary"]
    values = [
        (np.arange(1000) % 256).astype(np.uint8),
        np.frombuffer(b"x" * 70000, np.uint8).copy(),
    ]
    batch = client.objects_submit("set", keys, values)
    assert [r[2] for r in results_of(client, batch, 2)] == [0, 0]
    room = [np.zeros(70000, np.uint8) for _ in range(3)]
    batch = client.objects_submit("get", [*keys, b"none"], room)
    got = results_of(client, batch, 3)
    assert [r[2] for r in got] == [0, 0, 1] and [r[3] for r in got[:2]] == [1000, 70000]
    np.testing.assert_array_equal(room[0][:1000], values[0])
    np.testing.assert_array_equal(room[1], values[1])
    batch = client.objects_submit("delete", keys[:1])
    assert results_of(client, batch, 1)[0][2] == 0
    batch = client.objects_submit("exists", keys)
    assert [r[2] for r in results_of(client, batch, 2)] == [1, 0]
    assert client.objects_event_fd() >= 0
    with pytest.raises(kvtier.InvalidArgument):
        client.objects_submit("get", keys)


def test_a_buffer_stays_where_it_is_until_its_result_is_polled(daemon):
    """A bytearray that grew would move, and the result be written to memory that is let go."""
    client = daemon.client()
    for verb, content in (("set", b"x" * 5000), ("get", bytes(5000))):
        value = bytearray(content)
        batch = client.objects_submit(verb, [b"key"], [value])
        with pytest.raises(BufferError):
            value.extend(bytes(1 << 20))
        assert [r[2] for r in results_of(client, batch, 1)] == [0]
        assert value == b"x" * 5000
        value.extend(bytes(1 << 20))
    client.objects_submit("get", [b"key"], [value])
    client.close()
    value.extend(bytes(1 << 20))


def signatures(stub: ast.Module) -> dict[str, dict[str, str]]:
    """What a stub declares, without its types: class ("" for functions) -> name -> "property" or
    the arguments."""
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}

    def one(function: ast.FunctionDef) -> str:
        if any(isinstance(d, ast.Name) and d.id == "property" for d in function.decorator_list):
            return "property"
        arguments = ast.parse(ast.unparse(function)).body[0].args
        for argument in (
            *arguments.args,
            *arguments.kwonlyargs,
            *filter(None, (arguments.vararg, arguments.kwarg)),
        ):
            argument.annotation = None
        return ast.unparse(arguments)

    def members(node: ast.ClassDef) -> dict[str, str]:
        inherited = [
            members(classes[b.id])
            for b in node.bases
            if isinstance(b, ast.Name) and b.id in classes
        ]
        own = {f.name: one(f) for f in node.body if isinstance(f, ast.FunctionDef)}
        return {k: v for d in (*inherited, own) for k, v in d.items()}

    functions = {f.name: one(f) for f in stub.body if isinstance(f, ast.FunctionDef)}
    return {"": functions} | {name: members(node) for name, node in classes.items()}


def test_the_stub_is_what_the_module_has(space, tmp_path):
    """__init__.pyi, written for people, against the stub that nanobind makes of the module
    itself."""
    made = tmp_path / "made.pyi"
    subprocess.run(
        [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "kvtier._kvtier", "-o", str(made)],
        check=True,
        env=os.environ | PATHS,
    )
    package = Path(kvtier.__file__).parent
    stub = ast.parse((package / "__init__.pyi").read_text())
    written, real = signatures(stub), signatures(ast.parse(made.read_text()))
    for name, members in real.items():
        assert written[name] == members, name
    errors = {
        n for n, c in vars(kvtier).items() if isinstance(c, type) and issubclass(c, Exception)
    }
    bases = {
        n.name: [b.id for b in n.bases]
        for n in stub.body
        if isinstance(n, ast.ClassDef) and n.name in errors
    }
    assert bases == {n: [getattr(kvtier, n).__base__.__name__] for n in errors}
    helpers = {"_Array", "_Closable", "ViewStats", "__version__"}
    assert set(written) - helpers == {"", *real, *errors}
    constants = {n.target.id for n in stub.body if isinstance(n, ast.AnnAssign)}
    assert {*written, *written[""], *constants} - helpers - {""} == set(kvtier.__all__)
    assert (package / "py.typed").exists()
    with space.create() as sequence:
        assert list(sequence.view().stats()) == [
            f.target.id for n in stub.body if getattr(n, "name", "") == "ViewStats" for f in n.body
        ]
