"""Optimizers and schedules over optax, with rules by parameter name."""

from vlm_jax.optim.factory import Optimizer
from vlm_jax.optim.rules import merge
from vlm_jax.optim.schedules import Constant, Cosine, Rsqrt

__all__ = ["Constant", "Cosine", "Optimizer", "Rsqrt", "merge"]
