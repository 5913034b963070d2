"""What a run carries from step to step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Int

Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes, and the parameters it leaves alone.

    Attributes:
      step: updates done (also counts skipped ones).
      params: trained parameters, nested dicts.
      frozen: parameters that no gradient reaches (locked towers).
      state: what is not trained by gradient (codebooks, statistics).
      opt: the optimizer's state.
      ema: moving average of `params`; an empty dict where there is none.
      guard: what guards remember of the last steps (`vlm_jax.health.guards`); an empty dict where they need nothing.
    """

    step: Int[Array, ""]
    params: Tree
    frozen: Tree
    state: Tree
    opt: Tree
    ema: Tree
    guard: Tree = dataclasses.field(default_factory=dict)

    def replace(self, **changes) -> TrainState:
        return dataclasses.replace(self, **changes)
