"""What is said of an argument that the module cannot take.

nanobind's own message lists whole signatures and leaves it to the reader which argument was wrong.
So a call that it refused is looked at once more, argument by argument, against the signature that
nanobind keeps: wrong types are a TypeError, numbers out of range an InvalidArgument. A call that is
right costs one more Python call.
"""

from __future__ import annotations

import ast
import inspect
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from ._kvtier import InvalidArgument, Layer

REFUSED = "incompatible function arguments"  # nanobind's words
INVALID = 20  # KVT_ERROR_INVALID
NARROWEST = 1 << 16  # what fits is never refused for its size
NUMBERS = set("bBhHiIlLqQnNefd?")  # formats of the buffer protocol that nanobind takes
CPU = 1  # kDLCPU


def _converts(conversion: Callable[[Any], Any], value: Any) -> bool:
    """Whether it does: arrays have every conversion, and refuse it for what they hold."""
    try:
        conversion(value)
    except Exception:
        return False
    return True


def _every(kind: Any) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, Sequence)
        and not isinstance(value, (str, bytes))
        and all(isinstance(item, kind) for item in value)
    )


def _number(value: Any) -> bool:
    return hasattr(value, "__float__") and _converts(float, value)


def _array(value: Any) -> bool:
    return (
        hasattr(value, "__dlpack__")
        or type(value).__name__ == "PyCapsule"  # of an older library's to_dlpack
        or _converts(memoryview, value)
    )


_LIST = "collections.abc.Sequence"
EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (lambda value: _converts(operator.index, value), "an integer"),
    "float": (_number, "a number"),
    "str": (lambda value: isinstance(value, str), "a str"),
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "dict": (lambda value: isinstance(value, dict), "a dict"),
    "ndarray": (_array, "a numpy array, a torch tensor on the CPU, or another DLPack array"),
    f"{_LIST}[object]": (_every(object), "a list"),
    f"{_LIST}[bytes]": (_every(bytes), "a list of bytes"),
    f"{_LIST}[float]": (_every((int, float)), "a list of numbers"),
    f"{_LIST}[kvtier._kvtier.Layer]": (_every(Layer), "a list of kvtier.Layer"),
}


def signature_of(function: Any) -> inspect.Signature:
    """Of a nanobind function, its annotations as text."""
    text, _, defaults = function.__nb_signature__[0]
    text = re.sub(r"ndarray\[[^]]*\]", "ndarray", text.partition(" -> ")[0])
    parsed = ast.parse(re.sub(r"\\(\d+)", r"\1", text) + ": ...").body[0].args
    kinds = inspect.Parameter
    first_default = len(parsed.args) - len(parsed.defaults)
    plain = [None] * first_default + list(parsed.defaults)
    rows = [(arg, d, kinds.POSITIONAL_OR_KEYWORD) for arg, d in zip(parsed.args, plain)]
    rows += [(arg, d, kinds.KEYWORD_ONLY) for arg, d in zip(parsed.kwonlyargs, parsed.kw_defaults)]
    return inspect.Signature(
        [
            kinds(
                arg.arg,
                kind,
                default=kinds.empty if default is None else defaults[default.value],
                annotation=ast.unparse(arg.annotation) if arg.annotation else kinds.empty,
            )
            for arg, default, kind in rows
        ]
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) <= 40 else type(value).__name__


def _elsewhere(value: Any) -> bool:
    """An array that does not lie in the CPU's memory."""
    try:
        return hasattr(value, "__dlpack_device__") and value.__dlpack_device__()[0] != CPU
    except Exception:
        return True


def _not_exported(value: Any) -> str:
    """Why an array may have been refused, in the words of its library. nanobind tries more ways
    than this one, the buffer protocol among them: so a read-only numpy array is taken."""
    if _converts(memoryview, value) and memoryview(value).format in NUMBERS:
        return ""
    try:
        value.__dlpack__()
    except Exception as error:
        return f": {error}"
    return ""


def problem(name: str, signature: inspect.Signature, args: Any, kwargs: Any) -> Exception | None:
    """What is wrong with a call that was refused; None: nothing that is known here."""
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        return TypeError(f"{name}(): {error}")
    large, arrays = [], []
    for argument, value in given.items():
        kind = str(signature.parameters[argument].annotation)
        optional = kind.endswith(" | None")
        fits, wanted = EXPECTED.get(kind.removesuffix(" | None"), (None, ""))
        if fits is None or (optional and value is None):
            continue
        wanted += " or None" if optional else ""
        if not fits(value):
            return TypeError(f"{name}(): {argument} must be {wanted}, not {_shown(value)}")
        if kind.startswith("int") and (number := operator.index(value)) < 0:
            return _invalid(f"{name}(): {argument} must be 0 or more, not {number}")
        if kind.startswith("int") and number >= NARROWEST:
            large.append(f"{argument} {number}")
        if kind.startswith("ndarray") and _elsewhere(value):
            where = getattr(value, "device", "another device")
            return TypeError(f"{name}(): {argument} must be {wanted}, not on {where}")
        if kind.startswith("ndarray"):
            arrays.append((f"{name}(): {argument} must be {wanted}", value))
    if large:
        return _invalid(f"{name}(): too large: {' or '.join(large)}")
    for text, value in arrays:  # last: what is found here is the likely reason, no certain one
        if reason := _not_exported(value):
            return TypeError(text + reason)
    return None


def _invalid(text: str) -> InvalidArgument:
    error = InvalidArgument(text)
    error.code = INVALID
    return error


def explained(function: Any) -> Any:
    """The function, with errors that name the argument; as it is where it takes none, or where this
    nanobind keeps signatures in a form that is not known here: then its own message must do."""
    try:
        name, signature = function.__name__, signature_of(function)
    except Exception:
        return function
    if not set(signature.parameters) - {"self"}:
        return function

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            refused = problem(name, signature, args, kwargs) if REFUSED in str(error) else None
            if refused is None:
                raise
        raise refused

    call.__name__ = call.__qualname__ = name
    call.__doc__, call.__module__ = function.__doc__, function.__module__
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def explain(*classes: type) -> None:
    """Of these classes of the module, every method that takes arguments. Not their constructors:
    nanobind calls those past what is set here."""
    for kind in classes:
        for name, member in list(vars(kind).items()):
            if not name.startswith("__") and hasattr(member, "__nb_signature__"):
                setattr(kind, name, explained(member))
