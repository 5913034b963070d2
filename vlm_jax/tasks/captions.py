"""What tasks share whose models write captions: `predict["generate"]`, and what they ask of the texts of a run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int

from vlm_jax.errors import UserError
from vlm_jax.generate import Sampling, generate
from vlm_jax.nn import shard
from vlm_jax.tasks.base import Variables


def check_begin(experiment: Any) -> None:
    """Raises UserError where texts begin with their first word: it would be given, and never predicted."""
    if experiment.text is not None and not experiment.text.bos:
        raise UserError("config.text.bos=False: the first token of a caption is given to the model; set it to True.")


def writer(
    model: Any, reads: Any, sampling: Sampling, begin: Sequence[int] | None, variables: Variables
) -> Callable[..., Array]:
    """`generate(image uint8 [n, H, W, 3], prompt=None, key=None)`: captions, int32 [n, max_tokens].

    Each ends with the model's end token, or where `sampling` stops, and is filled up with padding. Where the model has
    less room for them than `sampling.max_tokens`, they are so much shorter.

    Args:
      model: has `encode_image`, `start_captions` and `extend`.
      reads: the part of it that has `length`, `eos_id` and `pad_id` of captions.
      begin: tokens of the prompt of all rows where none is given; a prompt is int32 [n, L], padded on the right.
    """
    mesh = shard.mesh_of(variables)

    def write(image: Array, prompt: Int[Array, "n time"] | None = None, key: Array | None = None) -> Array:
        if prompt is None and begin is None:
            raise UserError("generate: the task has no bos_id that captions begin with; give prompts.")
        prompt = jnp.tile(jnp.array(begin), (image.shape[0], 1)) if prompt is None else jnp.asarray(prompt)
        prompt = prompt.astype(jnp.int32)
        return _write(model, mesh, _fitting(sampling, reads, prompt.shape[1]), variables, image, prompt, key)

    return write


def _fitting(sampling: Sampling, reads: Any, taken: int) -> Sampling:
    if taken >= reads.length:
        raise UserError(f"a prompt of {taken} tokens leaves no room for more: the model has length={reads.length}.")
    stop = sampling.stop or (() if reads.eos_id is None else (reads.eos_id,))
    room = min(sampling.max_tokens, reads.length - taken)
    return dataclasses.replace(sampling, max_tokens=room, stop=stop, pad=reads.pad_id or 0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _write(
    model: Any,
    mesh: Mesh | None,
    sampling: Sampling,
    variables: Variables,
    image: Array,
    prompt: Int[Array, "n time"],
    key: Array | None,
) -> Int[Array, "n max_tokens"]:
    with shard.under(mesh):
        tokens = model.encode_image(variables, image)[1]["tokens"]
        logits, cache = model.start_captions(variables, tokens, prompt, prompt.shape[1] + sampling.max_tokens)
        return generate(functools.partial(model.extend, variables), logits, cache, sampling, key)
