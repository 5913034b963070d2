"""Parts that go wrong on purpose, at the examples that a config names."""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp

from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.tasks.contrastive import Contrastive

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Spoilt(Contrastive):
    """Its loss is not a number, or leaps up, wherever the batch has an example of a span [first, last)."""

    not_finite: tuple[Span, ...] = ()
    leaps: tuple[Span, ...] = ()

    def batch_spec(self, batch_size):
        return super().batch_spec(batch_size) | {"example_id": jax.ShapeDtypeStruct((batch_size, 2), jnp.uint32)}

    def loss(self, variables, batch, ctx):
        loss, aux = super().loss(variables, batch, ctx)
        ids = batch["example_id"][:, 1]
        within = lambda spans: jnp.stack([((ids >= a) & (ids < b)).any() for a, b in spans or ((0, 0),)]).any()
        return loss * jnp.where(within(self.not_finite), jnp.nan, 1.0) + 100.0 * within(self.leaps), aux


@dataclasses.dataclass(frozen=True)
class Hanging(Shapes):
    """One of its records never comes."""

    hangs_at: int = -1

    def __getitem__(self, index):
        while index == self.hangs_at:
            time.sleep(1)
        return super().__getitem__(index)
