"""Values against annotations: the signature of a component is the schema of its config."""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from ml_collections import ConfigDict

from vlm_jax.errors import UserError, closest

_NONE = type(None)


def is_mapping(value: Any) -> bool:
    """Whether a config value has keys: a dict or a `ConfigDict` (which is no `Mapping`)."""
    return isinstance(value, (Mapping, ConfigDict))


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of a component: its annotation, and its default where it has one."""

    annotation: Any
    default: Any = dataclasses.MISSING

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING


@cache
def parameters(target: Any) -> dict[str, Parameter] | None:
    """The named parameters of a class or function, or None where it takes any (`**kwargs`)."""
    signature = inspect.signature(target)
    hinted = target if dataclasses.is_dataclass(target) or not inspect.isclass(target) else target.__init__
    hints = typing.get_type_hints(hinted)
    fields = dataclasses.fields(target) if dataclasses.is_dataclass(target) else ()
    factories = {f.name: f.default_factory for f in fields if f.default_factory is not dataclasses.MISSING}
    out = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            return None
        default = dataclasses.MISSING if parameter.default is parameter.empty else parameter.default
        if name in factories and default is not dataclasses.MISSING:  # the signature shows a stand-in
            default = factories[name]()
        out[name] = Parameter(hints.get(name, Any), default)
    return out


def options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; the annotation itself where it is none."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def describe(annotation: Any) -> str:
    """An annotation in the words of an error line: `int or None`, `tuple of float`."""
    if annotation is Any:
        return "anything"
    if annotation is _NONE or annotation is None:
        return "None"
    members = options(annotation)
    if len(members) > 1:
        return " or ".join(describe(m) for m in members)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(a) for a in arguments)
    if origin is tuple and arguments:
        if arguments[-1] is Ellipsis:
            return f"a tuple of {describe(arguments[0])}"
        return "a tuple (" + ", ".join(describe(a) for a in arguments) + ")"
    return getattr(annotation, "__name__", str(annotation))


class Mismatch(Exception):
    """The value does not have the annotated type."""


def coerce(value: Any, annotation: Any) -> Any:
    """The value as the annotated type: `1e4` for an int, 3 for a float, a list for a tuple. Raises Mismatch."""
    members = options(annotation)
    if len(members) > 1:
        for exact in (True, False):  # 3 stays an int in `float | int`
            for member in members:
                if exact and (not isinstance(member, type) or type(value) is not member):
                    continue
                try:
                    return coerce(value, member)
                except Mismatch:
                    continue
        raise Mismatch
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if annotation is _NONE or annotation is None:
        if value is None:
            return None
    elif origin is typing.Literal:
        if value in arguments:
            return value
    elif annotation is bool:
        if isinstance(value, bool):
            return value
    elif annotation is int:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer():
            return int(value)
    elif annotation is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif annotation is str:
        if isinstance(value, str):
            return value
    elif origin in (tuple, list, collections.abc.Sequence) or annotation in (tuple, list):
        if isinstance(value, (tuple, list)):
            return _coerce_items(value, arguments)
    elif origin in (dict, Mapping, collections.abc.Mapping) or annotation in (dict, Mapping):
        if is_mapping(value):
            return value
    elif value is not None and not isinstance(value, (int, float, str, bool, tuple, list, Mapping, ConfigDict)):
        return value  # an object given to a component by code, not by a config
    raise Mismatch


def _coerce_items(value, arguments) -> tuple:
    if not arguments:
        return tuple(value)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(coerce(item, arguments[0]) for item in value)
    if len(value) != len(arguments):
        raise Mismatch
    return tuple(coerce(item, kind) for item, kind in zip(value, arguments))


def is_component(annotation: Any) -> bool:
    """Whether a value of this annotation is bound (a class of ours or the user's) and not a plain value."""
    return isinstance(annotation, type) and annotation.__module__ not in ("builtins", "typing", "collections.abc")


def parse(text: str, annotation: Any, where: str) -> Any:
    """The value that a flag's text stands for, by the annotation of the parameter it sets.

    Numbers may be written `1e4` or `1_000` for ints, lists `a,b` or `[a, b]`, booleans in any case; a string needs
    no quotes. Raises UserError with `where` in it.
    """
    members = options(annotation)
    if _NONE in members and text.lower() in ("none", "null"):
        return None
    if bool in members and text.lower() in ("true", "false"):
        return text.lower() == "true"
    literal = _literal(text)
    candidates = [literal] if literal is not _UNREAD else []
    if any(_is_sequence(m) for m in members):
        inside = text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else text
        candidates.append(tuple(_word(part) for part in inside.split(",") if part.strip()))
    if not isinstance(literal, str):
        candidates.append(text)
    if members == (str,):
        candidates = [text if literal is _UNREAD or not isinstance(literal, str) else literal]
    for candidate in candidates:
        try:
            return coerce(candidate, annotation)
        except Mismatch:
            continue
    raise UserError(wrong_type(where, text, annotation))


def wrong_type(where: str, value: Any, annotation: Any) -> str:
    """The line that says which type `where` takes, with the nearest choice where it is one of several words."""
    hint = ""
    choices = [a for m in options(annotation) if typing.get_origin(m) is typing.Literal for a in typing.get_args(m)]
    if choices and isinstance(value, str):
        hint = "; " + closest(value, [str(c) for c in choices])
    return f"{where}={value!r} is of the wrong type: it takes {describe(annotation)}{hint}"


_UNREAD = object()


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return _UNREAD


def _word(text: str) -> Any:
    value = _literal(text.strip())
    return text.strip() if value is _UNREAD else value


def _is_sequence(annotation: Any) -> bool:
    return annotation in (tuple, list) or typing.get_origin(annotation) in (tuple, list, collections.abc.Sequence)
