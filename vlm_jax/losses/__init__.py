"""Losses of the global batch, on any mesh, that never hold the matrix of all pairs. They need jax alone."""

from . import reference
from .cross_entropy import cross_entropy
from .infonce import infonce_loss
from .ring import choose_group
from .sigmoid import sigmoid_loss

__all__ = ["choose_group", "cross_entropy", "infonce_loss", "reference", "sigmoid_loss"]
