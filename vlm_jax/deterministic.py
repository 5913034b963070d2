"""Proof, at the first step, that the program of a run gives the same bits each time it is run."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vlm_jax.checkpoint.fingerprint import differing, fingerprint
from vlm_jax.errors import UserError


def proven(update: Callable) -> Callable:
    """The update `(state, batch) -> (state, metrics)`, whose first call is made twice, on a copy of the state first.

    That call raises UserError where the two differ in a bit: then a run that is restarted would not be the same run.
    """
    proof = False

    def call(state, batch):
        nonlocal proof
        if proof:
            return update(state, batch)
        once = _marks(update(jax.tree.map(jnp.copy, state), batch))
        result = update(state, batch)
        if wrong := differing(once, _marks(result)):
            raise UserError(
                f"this program is not deterministic: {wrong[0]} of its first step differs when it is run again"
                f"{f', and {len(wrong) - 1} more' if len(wrong) > 1 else ''}; config.deterministic=False accepts that."
            )
        proof = True
        return result

    return call


def _marks(result) -> dict[str, str]:
    state, metrics = result
    parts = {"params": state.params, "state": state.state, "opt": state.opt, "ema": state.ema, "metrics": metrics}
    return {f"{part}/{name}": mark for part, values in parts.items() for name, mark in fingerprint(values).items()}
