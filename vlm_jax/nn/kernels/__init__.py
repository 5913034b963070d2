"""Pallas kernels and their plain formulas, chosen by the platform that a program is compiled for."""

from vlm_jax.nn.kernels.add_norm import add_layer_norm
from vlm_jax.nn.kernels.grouped import causal_attention, seen_by
from vlm_jax.nn.kernels.mlp import perceptron, perceptron_gradients
from vlm_jax.nn.kernels.select import SPLASH_FROM, attention

__all__ = [
    "SPLASH_FROM",
    "add_layer_norm",
    "attention",
    "causal_attention",
    "perceptron",
    "perceptron_gradients",
    "seen_by",
]
