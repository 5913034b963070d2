"""The parameters of another model as the start of a run: of another workdir, or of another library."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vlm_jax import config as configs
from vlm_jax import interop, tree
from vlm_jax.checkpoint import load_params
from vlm_jax.errors import UserError, closest
from vlm_jax.interop import ours
from vlm_jax.models.autoencoder import PARTS, Autoencoder
from vlm_jax.models.captioner import Captions
from vlm_jax.models.two_tower import TwoTower
from vlm_jax.models.vit import ViT
from vlm_jax.nn.positions import resample

LISTED = 5
# What decides how parameters are computed with, and does not show in their shapes.
MEANING = ("activation", "norm_eps", "pool", "pre_norm", "causal")


class Loaded(NamedTuple):
    """Parameters by nested per-layer names, whence they are, and of which step those of each workdir are."""

    params: dict
    whence: str
    steps: dict[str, int]


def load(path: str, model: Any, warn: Callable[[str], None]) -> Loaded:
    """The parameters of another model. An image tower alone is put under `image`.

    Args:
      path: a workdir, a checkpoint, or what `vlm_jax.interop.source` takes.
      model: the run's, which has to compute as the other one does.
      warn: gets a line where the two see pixels differently.

    Raises:
      UserError: there is nothing to load, or the models compute differently.
    """
    if not interop.is_foreign(path):
        if not Path(path).is_dir():
            raise UserError(f"config.init_from={path}: no such folder.")
        params, meta = load_params(path)
        return Loaded(params, f"parameters from {path}, step {meta['step']}", {path: meta["step"]})
    found = interop.source(path)
    theirs = configs.build(found.model)
    alone = isinstance(theirs, ViT)
    if alone and not isinstance(model, (TwoTower, Captions, ViT)):
        raise UserError(f"config.init_from={path} is an image tower; {type(model).__name__} has none to put it in.")
    _compute_alike(path, _towers(model), _towers(theirs))
    params = found.params()
    params = {"image": params} if alone and not isinstance(model, ViT) else params
    pixels = lambda model: (getattr(model, "image_mean", None), getattr(model, "image_std", None))
    if not alone and pixels(model) != pixels(theirs):
        warn(f"config.init_from={path}: check that task.model.image_mean and image_std are those it was trained with")
    return Loaded(params, f"parameters from {path} ({found.family}{', image tower' if alone else ''})", {})


def load_parts(parts: Mapping[str, str], model: Any, warn: Callable[[str], None]) -> Loaded:
    """Parameters of several models, each under a name of this one's.

    Args:
      parts: {"image": "PATH#image", "decoder": "PATH"}: our name, and what `load` takes; "#NAME" is a part of it.
      model, warn: see `load`.

    Raises:
      UserError: there is nothing to load, or no such part, or a part computes differently.
    """
    params, said, steps = {}, [], {}
    for prefix, spec in parts.items():
        path, _, part = spec.partition("#")
        found, theirs, step = _anything(path)
        steps |= {} if step is None else {path: step}
        for name in part.split("/") if part else ():
            if not isinstance(found, Mapping) or name not in found:
                names = found if isinstance(found, Mapping) else ()
                raise UserError(f"config.init_from.{prefix}={spec}: {path} has no {part!r}; {closest(name, names)}")
            found, theirs = found[name], getattr(theirs, name, None)
        ours = getattr(model, prefix, None)
        if isinstance(ours, Autoencoder) and isinstance(theirs, Autoencoder):
            _same_autoencoder(prefix, spec, ours, theirs)
            found = {name: found[name] for name in PARTS}
        if ours is not None and theirs is not None and hasattr(ours, "geometry") and hasattr(theirs, "geometry"):
            _compute_alike(spec, {prefix: ours}, {prefix: theirs})
        params[prefix] = found
        said.append(f"{prefix} from {spec}")
    return Loaded(params, f"parameters of {', '.join(said)}", steps)


def _anything(path: str) -> tuple[dict, Any, int | None]:
    """(Parameters, the model they are of, their step) of a workdir, or of another library."""
    if interop.is_foreign(path):
        found = interop.source(path)
        return found.params(), configs.build(found.model), None
    if not Path(path).is_dir():
        raise UserError(f"config.init_from={path}: no such folder.")
    params, meta = load_params(path)
    model = configs.build(ours.open_run(Path(path)).model) if configs.is_workdir(path) else None
    return params, model, meta["step"]


def _same_autoencoder(prefix: str, spec: str, ours: Autoencoder, theirs: Autoencoder) -> None:
    """Raises UserError where codes would mean something else: shapes alone do not show it of levels and signs."""
    for field in dataclasses.fields(ours):
        mine, wanted = getattr(ours, field.name), getattr(theirs, field.name)
        if mine != wanted:
            raise UserError(
                f"config.init_from.{prefix}={spec}: its {field.name} is {wanted}, this model's is {mine}; set "
                f"task.model.{prefix}.{field.name} to it."
            )


def load_state(init_from: str | Mapping[str, str], live: Any, steps: Mapping[str, int]) -> Any:
    """The state of a run with that of the workdirs that its parameters come from: codebooks, which are no parameters.

    Args:
      steps: of each workdir, the step that the parameters are of: a codebook of another does not fit them.

    Raises:
      UserError: a workdir has none, or one of other shapes.
    """
    parts = init_from if isinstance(init_from, Mapping) else {"": init_from}
    given: dict[str, Any] = {}
    for prefix, spec in parts.items():
        path, _, part = spec.partition("#")
        names = [name for name in tree.flatten(live) if not prefix or name.startswith(f"{prefix}/")]
        if not names or interop.is_foreign(path):
            continue
        found = load_params(path, "state", steps[path])[0]
        for name in part.split("/") if part else ():
            found = found.get(name, {})
        found = tree.flatten({prefix: found} if prefix else found)
        given |= {name: found.get(name) for name in names}

    def leaf(name, old):
        if name not in given:
            return old
        shape = None if given[name] is None else given[name].shape
        if shape != old.shape:
            raise UserError(f"config.init_from: its state {name} is {shape or 'missing'}, wanted is {old.shape}.")
        return jax.device_put(jnp.asarray(given[name], old.dtype), old.sharding)

    return tree.map_with_name(leaf, live)


def others(parts: Mapping[str, str]) -> str:
    """What `fit` skips where only these parts were loaded: the names of all other parameters."""
    return rf"(?!(?:{'|'.join(map(re.escape, parts))})/).*"


def _towers(model: Any) -> dict[str, Any]:
    if isinstance(model, ViT):
        return {"image": model}
    return {name: getattr(model, name) for name in ("image", "text", "decoder") if hasattr(model, name)}


def _compute_alike(path: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    for name in ours.keys() & theirs.keys():
        pairs = {field: (getattr(ours[name], field), getattr(theirs[name], field)) for field in MEANING
                 if hasattr(ours[name], field)}  # fmt: skip
        pairs["num_heads"] = ours[name].geometry.num_heads, theirs[name].geometry.num_heads
        for field, (mine, wanted) in pairs.items():
            if mine != wanted:
                raise UserError(
                    f"config.init_from={path}: its {name} tower has {field}={wanted!r}, this model's has {mine!r}; "
                    f"--config.task.model.{name}.{field}={wanted}"
                )


def fit(
    params: dict, live: Any, stacks: Mapping[str, int], skip: Sequence[str] = (), posemb_resize: str = "bilinear"
) -> Any:
    """The live tree with the given parameters in it; learned positions are resampled to fit.

    Args:
      params: nested dicts under per-layer names.
      live: the initialised parameters.
      stacks: its scanned groups of layers.
      skip: regular expressions of per-layer names that stay as initialised. Of an image tower alone everything else
        does, too.
      posemb_resize: the model's, see `models.vit.ViT`.

    Raises:
      UserError: names or shapes that do not fit, listed; or a rule of `skip` fits no name.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), live)
    wanted = tree.flatten(tree.unstack(shapes, stacks))
    given = tree.flatten(params)
    for pattern in skip:
        if not any(re.fullmatch(pattern, name) for name in [*wanted, *given]):
            raise UserError(f"config.init_from_skip: {pattern!r} matches no whole name; {closest(pattern, wanted)}")
    alone = not any(name.split("/")[0] != "image" for name in given)
    kept = {n for n in [*wanted, *given] if any(re.fullmatch(pattern, n) for pattern in skip)}
    kept |= {name for name in wanted if alone and not name.startswith("image/")}
    wanted = {name: leaf for name, leaf in wanted.items() if name not in kept}
    given = {name: leaf for name, leaf in given.items() if name not in kept}
    for name in [n for n in wanted if n.endswith("embed/posemb")]:
        patches = name.replace("posemb", "patch/kernel") in wanted  # and not the positions of a text
        if patches and name in given and given[name].shape != wanted[name].shape:
            count = wanted[name].shape[0]
            side = math.isqrt(count)
            prefix = count - side**2  # 1 where CLS has a position
            given[name] = resample(given[name], (side, side), prefix=prefix, method=posemb_resize)
    _complain(wanted, given)
    return _merged(live, given, stacks)


def _complain(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    wrong = [
        f"{name}: {'missing' if name not in given else f'{given[name].shape} where {leaf.shape} is wanted'}"
        for name, leaf in wanted.items()
        if name not in given or given[name].shape != leaf.shape
    ]
    wrong += [f"{name}: unknown; {closest(name, wanted)}" for name in given if name not in wanted]
    if wrong:
        more = f" and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
        raise UserError(
            f"config.init_from does not fit the model: {'; '.join(wrong[:LISTED])}{more}. "
            "config.init_from_skip leaves parameters out by name."
        )


def _merged(live: Any, given: Mapping[str, Any], stacks: Mapping[str, int]) -> Any:
    """Given arrays where there are any, put where the live ones are."""

    def leaf(name, old):
        names = tree.per_layer_names(name, old.shape, stacks) or [name]
        found = [given[n] for n in names if n in given]
        if not found:
            return old
        if len(found) < len(names):
            raise UserError(
                f"config.init_from_skip leaves out a part of {name}, whose layers are scanned: all or none."
            )
        value = jnp.stack(found) if names != [name] else jnp.asarray(found[0])
        return jax.device_put(value.astype(old.dtype), old.sharding)

    return tree.map_with_name(leaf, live)
