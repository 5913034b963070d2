"""`--config.a.b=VALUE` and `--bind='Target.param=VALUE'`: what a command line changes in a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from vlm_jax import schema
from vlm_jax.config import TARGET, bind, is_late, is_node, items, resolve
from vlm_jax.errors import UserError, closest
from vlm_jax.schema import is_mapping
from vlm_jax.units import UNITS


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets the dotted `key` to the value that `text` stands for, by the type of the parameter that it names.

    A parameter that the recipe leaves at its default may be set as well; a component is replaced by naming another.

    Raises:
      UserError: no such key, or a value of the wrong type; it names the nearest valid keys.
    """
    *parents, last = key.split(".")
    node, where = config, "config"
    for part in parents:
        _require(node, part, where)
        if not is_mapping(node.get(part)):
            node[part] = _from_default(node, part, f"{where}.{part}")
        node, where = node[part], f"{where}.{part}"
    _require(node, last, where)
    set_value(node, last, text, f"{where}.{last}")


def override_all(config: ConfigDict, overrides: Iterable[tuple[str, str]]) -> None:
    """Applies overrides in order. A duration in one unit takes the place of the recipe's in another.

    Raises:
      UserError: see `override`; two units given here stay two, which is an error where the duration is used.
    """
    overrides = list(overrides)
    given = {key for key, _ in overrides}
    for key, text in overrides:
        base, _, unit = key.rpartition("_")
        if unit in UNITS and text.lower() != "none":
            for other in UNITS:
                if f"{base}_{other}" not in given and _known(config, f"{base}_{other}"):
                    override(config, f"{base}_{other}", "None")
        override(config, key, text)


def _known(config: Mapping, key: str) -> bool:
    """Whether the key is set to something."""
    for part in key.split("."):
        if not is_mapping(config) or config.get(part) is None:
            return False
        config = config[part]
    return True


def set_value(node: ConfigDict, key: str, text: str, where: str) -> None:
    """Sets one key of a node from a flag's text."""
    if not is_node(node) and text.lower() in ("none", "null"):  # `evals.NAME=None` leaves that evaluator out
        del node[key]
        return
    annotation = _annotation(node, key)
    current = node.get(key)
    nodes = is_node(current) or is_late(current) or any(schema.is_component(m) for m in schema.options(annotation))
    if nodes and text.lower() not in ("none", "null"):
        plain = any(m in (int, float, str, bool) for m in schema.options(annotation))
        if not plain:
            resolve(text)
            node[key] = bind(text)
            return
    value = schema.parse(text, annotation, where)
    with node.ignore_type():
        node[key] = value


def apply_bind(config: ConfigDict, text: str) -> int:
    """`ViT.depth=6`: sets a parameter on every node whose target is `ViT` (or `models.vit.ViT`); returns how many.

    Raises:
      UserError: no node has that target, its component has no such parameter, or the short name means several.
    """
    assignment, equals, value = text.partition("=")
    name, dot, key = assignment.strip().rpartition(".")
    if not equals or not dot:
        raise UserError(f"--bind={text!r} should read 'Target.param=VALUE', for example 'ViT.depth=6'.")
    nodes = list(_nodes(config))
    targets = {node[TARGET] for _, node in nodes}
    matched = {t for t in targets if t == name or t.endswith(f".{name}")}
    if not matched:
        short = [f"{t.rsplit('.', 1)[-1]}" for t in targets]
        raise UserError(f"--bind={text!r}: this config binds no {name!r}; {closest(name, [*short, *targets])}")
    if len(matched) > 1:
        raise UserError(f"--bind={text!r}: {name!r} is ambiguous; it means {' or '.join(sorted(matched))}.")
    (target,) = matched
    known = schema.parameters(resolve(target))
    if known is not None and key not in known:
        raise UserError(f"--bind={text!r}: {name} has no parameter {key!r}; {closest(key, known)}")
    chosen = [(where, node) for where, node in nodes if node[TARGET] == target]
    for where, node in chosen:
        set_value(node, key, value, f"{where}.{key}")
    return len(chosen)


def _nodes(config: Mapping, where: str = "config", seen: set[int] | None = None) -> Iterator[tuple[str, ConfigDict]]:
    """Every node of the tree once, root first."""
    seen = set() if seen is None else seen
    if id(config) in seen:
        return
    seen.add(id(config))
    if is_node(config):
        yield where, config
    for key, value in items(config):
        if is_mapping(value) and not is_late(value):
            yield from _nodes(value, f"{where}.{key}", seen)


def _annotation(node: Mapping, key: str) -> Any:
    known = schema.parameters(resolve(node[TARGET])) if is_node(node) else None
    if known is None:
        value = node.get(key)
        return Any if value is None else type(value)
    return known[key].annotation


def _require(node: Mapping, key: str, where: str) -> None:
    if is_late(node):
        raise UserError(f"{where} is filled at run time; it can't be overridden.")
    known = schema.parameters(resolve(node[TARGET])) if is_node(node) else None
    names = list(known) if known is not None else [k for k, _ in items(node)]
    if key not in names:
        owner = resolve(node[TARGET]).__name__ if is_node(node) else where
        raise UserError(f"{where}.{key}: {owner} has no parameter {key!r}; {closest(key, names)}")


def _from_default(node: Mapping, key: str, where: str) -> ConfigDict:
    """A parameter left at its default, opened so that something inside it can be set."""
    from vlm_jax.config import fill

    value = fill(node).get(key)
    components = [m for m in schema.options(_annotation(node, key)) if schema.is_component(m)]
    if value is None and len(components) == 1:
        return bind(f"{components[0].__module__}.{components[0].__qualname__}".removeprefix("vlm_jax."))
    if not is_mapping(value):
        raise UserError(f"{where} is {value!r}, a plain value: it has no parameters of its own.")
    return ConfigDict(value, type_safe=False)
