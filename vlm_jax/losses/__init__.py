"""Contrastive losses whose result and gradients are those of the global batch, on any mesh. They need jax alone."""

from . import reference
from .infonce import infonce_loss
from .sigmoid import sigmoid_loss

__all__ = ["infonce_loss", "reference", "sigmoid_loss"]
