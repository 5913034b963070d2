"""Recipes as data: components are bound by name and keyword arguments, checked against their own signatures, and built.

    config = bind("experiment.Experiment", batch_size=64, task=bind("tasks.contrastive.Contrastive", ...))

A node is a `ConfigDict` with the key `_target`; nothing is imported until it is checked or built. Values that only a
run knows (`vocab_size`) are `late("vocab_size")`. The order of authority: recipe, variant, `--bind`, `--config.*`;
references (`config.get_ref("image_size")`) follow what they refer to.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vlm_jax import schema
from vlm_jax.errors import UserError, closest
from vlm_jax.redact import hidden
from vlm_jax.schema import is_mapping

TARGET, LATE = "_target", "_late"


def bind(target: str, /, **arguments) -> ConfigDict:
    """A component to be built: a dotted name, relative to `vlm_jax` or absolute, and its keyword arguments."""
    return ConfigDict({TARGET: target, **arguments}, type_safe=False)


def late(name: str) -> ConfigDict:
    """A value known only at run time; `build(node, NAME=value)` fills it."""
    return ConfigDict({LATE: name})


def is_node(value: Any) -> bool:
    return is_mapping(value) and TARGET in value


def is_late(value: Any) -> bool:
    return is_mapping(value) and LATE in value


def items(node: Mapping) -> Iterator[tuple[str, Any]]:
    """The arguments of a node, references resolved."""
    return ((key, node[key]) for key in node if key != TARGET)


def resolve(target: str) -> Any:
    """The class or function that a dotted name means, in `vlm_jax` first.

    Raises:
      UserError: no such module or name; it says the nearest ones.
    """
    module, _, name = target.rpartition(".")
    for full in (f"vlm_jax.{module}", module):
        try:
            found = importlib.import_module(full)
        except ModuleNotFoundError as error:
            # A module that exists but lacks one of its own imports is a different mistake.
            if error.name and not (full == error.name or full.startswith(error.name + ".")):
                raise UserError(f"{target} can't be imported: {error}.") from error
            continue
        except (ValueError, TypeError):  # an empty or relative name
            continue
        if hasattr(found, name):
            return getattr(found, name)
        public = [n for n, v in vars(found).items() if inspect.isclass(v) and v.__module__ == full]
        raise UserError(f"{full} has no component {name!r}; {closest(name, public)}")
    raise UserError(f"no component {target!r}; {closest(target, _reachable())}")


def _reachable() -> list[str]:
    """The dotted names of all components in the package, for hints."""
    import vlm_jax

    names = []
    for info in pkgutil.walk_packages(vlm_jax.__path__, "vlm_jax."):
        if info.name.startswith(("vlm_jax.configs", "vlm_jax.main")):
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if dataclasses.is_dataclass(value) and inspect.isclass(value) and value.__module__ == info.name:
                names.append(f"{info.name.removeprefix('vlm_jax.')}.{name}")
    return names


# Checking


def check(config: Mapping, where: str = "config") -> None:
    """Holds every node of the tree against its target's signature: names, types, what is missing.

    Raises:
      UserError: the first mismatch, with the nearest valid name.
    """
    if is_late(config):
        return
    if not is_node(config):
        for key, value in config.items():
            if is_mapping(value):
                check(value, f"{where}.{key}")
        return
    target = resolve(config[TARGET])
    known = schema.parameters(target)
    if known is None:
        return
    arguments = dict(items(config))
    for key, value in arguments.items():
        if key not in known:
            raise UserError(f"{where}.{key}: {target.__name__} has no parameter {key!r}; {closest(key, known)}")
        if is_mapping(value):
            _check_component(value, known[key].annotation, f"{where}.{key}")
            check(value, f"{where}.{key}")
            continue
        try:
            schema.coerce(value, known[key].annotation)
        except schema.Mismatch:
            raise UserError(schema.wrong_type(f"{where}.{key}", value, known[key].annotation)) from None
    missing = [key for key, parameter in known.items() if parameter.required and key not in arguments]
    if missing:
        raise UserError(f"{where}: {target.__name__} needs {', '.join(missing)}.")


def _check_component(value: Mapping, annotation: Any, where: str) -> None:
    """A node must be of the annotated class; a late value or a dict of nodes is taken on trust until it is built."""
    if not is_node(value):
        return
    members = schema.options(annotation)
    target = resolve(value[TARGET])
    classes = [m for m in members if schema.is_component(m) and not getattr(m, "_is_protocol", False)]
    plain = all(m in (int, float, str, bool, type(None)) for m in members)
    if plain or (classes and inspect.isclass(target) and not issubclass(target, tuple(classes))):
        takes = schema.describe(annotation)
        raise UserError(f"{where}: {value[TARGET]} is of the wrong type: it takes {takes}.")


def fill(config: Mapping) -> dict:
    """The config with every default of every component written out, references resolved to values.

    What it returns, plain dicts in the order of the signatures, is the whole truth of a run: a later change of a
    default in the code does not change it.
    """
    return _fill(config)


def _fill(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # a component that is a default
        name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("vlm_jax.")
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return {TARGET: name, **{k: _fill(v) for k, v in fields.items()}}
    if isinstance(value, (tuple, list)):
        return tuple(_fill(v) for v in value)
    if not is_mapping(value):
        return value
    if not is_node(value):
        return {key: _fill(value[key]) for key in value}
    known = schema.parameters(resolve(value[TARGET])) or {}
    arguments = {key: parameter.default for key, parameter in known.items() if not parameter.required}
    arguments.update(items(value))
    ordered = {key: arguments[key] for key in known if key in arguments} or arguments
    out = {TARGET: value[TARGET]}
    for key, argument in ordered.items():
        out[key] = _fill(argument)
        if key in known and not is_mapping(argument):
            try:  # so that 1 and 1.0 are one config
                out[key] = schema.coerce(out[key], known[key].annotation) if not is_node(out[key]) else out[key]
            except schema.Mismatch:
                raise UserError(schema.wrong_type(f"{value[TARGET]}.{key}", argument, known[key].annotation)) from None
    return out


# Building


def build(node: Any, *, memo: dict[int, Any] | None = None, **late_values) -> Any:
    """The object that a config tree describes: targets are called with their built arguments, one node one object.

    Raises:
      UserError: a late value was not given.
    """
    memo = {} if memo is None else memo
    if isinstance(node, (tuple, list)):
        return tuple(build(item, memo=memo, **late_values) for item in node)
    if not is_mapping(node):
        return node
    if is_late(node):
        if node[LATE] not in late_values:
            raise UserError(f"{node[LATE]!r} is known only at run time; {closest(node[LATE], late_values)}")
        return late_values[node[LATE]]
    if id(node) not in memo:
        known = (schema.parameters(resolve(node[TARGET])) if is_node(node) else None) or {}
        built = {}
        for key, value in items(node):
            built[key] = build(value, memo=memo, **late_values)
            if key in known and not is_mapping(value):  # 2.0 for an int is 2 here as it is in the filled config
                try:
                    built[key] = schema.coerce(built[key], known[key].annotation)
                except schema.Mismatch:
                    where = f"{node[TARGET]}.{key}"
                    raise UserError(schema.wrong_type(where, value, known[key].annotation)) from None
        # The node is kept beside its object: an id must not be given to another node while the memo lives.
        memo[id(node)] = (node, resolve(node[TARGET])(**built) if is_node(node) else built)
    return memo[id(node)][1]


# Loading


def recipes() -> dict[str, Path]:
    """The shipped recipes by name; in a checkout `configs/` lies beside the package, installed inside it."""
    here = Path(__file__).parent
    folder = next((f for f in (here / "configs", here.parent / "configs") if f.is_dir()), None)
    files = sorted(folder.glob("*.py")) if folder else []
    return {f.stem: f for f in files if not f.stem.startswith("_")}


def load(spec: str) -> ConfigDict:
    """The config that `NAME|PATH|WORKDIR[:VARIANT]` names.

    Raises:
      UserError: no such recipe, file or variant.
    """
    name, variant = split_spec(spec)
    path = Path(name)
    if names_workdir(name):
        if variant:
            raise UserError(f"{name} is a workdir; its config has no variants, but {variant!r} was asked for.")
        return from_file(path / "config.json")
    module = recipe_module(name)
    variants = variants_of(module)
    if variant and variant not in variants:
        raise UserError(f"{name} has no variant {variant!r}; {closest(variant, variants)}")
    return module.get_config(variant)


def is_workdir(name: str) -> bool:
    """Whether it is the folder of a run."""
    return (Path(name) / "config.json").is_file()


def names_workdir(name: str) -> bool:
    """Whether a `--config` is the folder of a run. A recipe's name is the recipe's; a folder of that name is ./NAME."""
    return name not in recipes() and is_workdir(name)


def split_spec(spec: str) -> tuple[str, str]:
    """(`NAME|PATH|WORKDIR`, variant) of a `--config`; a colon that belongs to an existing path is left alone."""
    if spec in recipes() or Path(spec).exists():
        return spec, ""
    name, _, variant = spec.partition(":") if spec.count(":") == 1 else spec.rpartition(":")
    return (name, variant) if name else (spec, "")


def recipe_module(name: str) -> Any:
    """The module of a recipe, by name or path. Raises UserError."""
    path = Path(name)
    if path.suffix != ".py":
        if name not in recipes():
            what = "a workdir without config.json" if path.is_dir() else "no recipe, file or workdir"
            raise UserError(f"--config={name}: {what}; {closest(name, recipes())}")
        path = recipes()[name]
    if not path.is_file():
        raise UserError(f"--config={name}: no such file.")
    spec = importlib.util.spec_from_file_location(f"vlm_jax_recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no get_config(variant); see docs/config.md.")
    return module


def variants_of(module: Any) -> dict[str, str]:
    """The variants a recipe offers, with a line on each: its `VARIANTS`."""
    return getattr(module, "VARIANTS", {})


# JSON and text


def to_json(config: Mapping) -> str:
    """The config as JSON, keys in order; `from_json` reads it back (tuples come back as tuples)."""
    return json.dumps(_fill(config), indent=1)


def from_json(text: str, where: str, known: Iterable[str] | None = ()) -> ConfigDict:
    """The config that `to_json` wrote.

    It may come from anywhere, and building it calls what it names: so it may name components of vlm_jax alone, those
    of modules in the environment's `VLM_JAX_TRUST` (`my_module,my_package`), and `known` ones.

    Args:
      known: other targets that may be bound, such as those of the user's own recipe; None for all, of a text that this
        program has written itself.

    Raises:
      UserError: the text is no config, or names something else.
    """
    try:
        config = ConfigDict(_tuples(json.loads(text)), type_safe=False)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{where} is no config written by this program: {error}.") from error
    for target in targets(config) if known is not None else ():
        if target not in known and not _is_trusted(target):
            raise UserError(
                f"{where} binds {target!r}, which is no component of vlm_jax, and files run no other code; "
                f"if it is yours, set VLM_JAX_TRUST={str(target).rpartition('.')[0] or 'MODULE'}."
            )
    if config.get("stages") == ():  # as it was written before there were any
        with config.ignore_type():
            config.stages = {}
    return config


def from_file(path: Path, known: Iterable[str] | None = ()) -> ConfigDict:
    """The config that a file holds, see `from_json`. Raises UserError, also for a file that cannot be read."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    return from_json(text, str(path), known)


def targets(config: Any) -> set[Any]:
    """What a config tree binds, by name."""
    if isinstance(config, (tuple, list)):
        return set().union(*map(targets, config))
    if not is_mapping(config):
        return set()
    own = {str(config[TARGET])} if is_node(config) else set()
    return own.union(*(targets(config[key]) for key in config))


def _is_trusted(target: str) -> bool:
    """Whether it is a component of this package, or the user has said that its module is theirs."""
    module, _, name = target.removeprefix("vlm_jax.").rpartition(".")
    trusted = [part.strip() for part in os.environ.get("VLM_JAX_TRUST", "").split(",") if part.strip()]
    if any(f"{module}.".startswith(f"{part}.") for part in trusted):
        return True
    try:
        found = vars(importlib.import_module(f"vlm_jax.{module}")).get(name)
    except (ModuleNotFoundError, ValueError, TypeError):
        return False
    ours = getattr(found, "__module__", "").startswith("vlm_jax.")
    return ours and inspect.isclass(found) and dataclasses.is_dataclass(found)


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def lines(config: Mapping, prefix: str = "") -> list[str]:
    """`key.subkey = value`, one a line: what `--print_config` shows, what golden files hold, what a diff compares.

    Without secrets of URLs: a signature that was renewed makes no other config.
    """
    out = []
    for key, value in items(config):
        name = f"{prefix}{key}"
        if is_late(value):
            out.append(f"{name} = late({value[LATE]!r})")
        elif is_node(value):
            out += [f"{name} = {value[TARGET]}", *lines(value, f"{name}.")]
        elif is_mapping(value):
            out += lines(value, f"{name}.") or [f"{name} = {{}}"]
        else:
            out.append(hidden(f"{name} = {value!r}"))
    return out


def diff(old: Mapping, new: Mapping) -> list[str]:
    """What differs between two filled configs, one line a key: `seed: 0 -> 1`."""
    return changes(plain(old), plain(new))


def changes(old: Mapping, new: Mapping) -> list[str]:
    """The same of two mappings as they are: no component that they name is looked for."""
    a, b = (dict(line.split(" = ", 1) for line in lines(c)) for c in (old, new))
    return [
        f"{k}: {a.get(k, '(absent)')} -> {b.get(k, '(absent)')}"
        for k in dict.fromkeys([*a, *b])
        if a.get(k) != b.get(k)
    ]


def plain(config: Mapping) -> dict:
    """Through JSON, so that a config from a file and one from a recipe compare equal."""
    return _tuples(json.loads(to_json(config)))
