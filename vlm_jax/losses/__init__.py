"""Losses of the global batch, on any mesh, that never hold the matrix of all pairs. They need jax alone."""

from . import codebook, reference
from .adversarial import (
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    non_saturating_generator_loss,
)
from .cross_entropy import cross_entropy
from .dvae import Relaxed, gumbel_noise, gumbel_softmax, most_likely_code
from .fsq import fsq, fsq_vectors
from .gaussian import gaussian_kl, gaussian_sample
from .infonce import infonce_loss
from .latents import look_up
from .lfq import lfq, lfq_entropies, lfq_vectors
from .logit_laplace import logit_laplace_loss, logit_laplace_nll, map_pixels, unmap_pixels
from .perceptual import perceptual_loss
from .reconstruction import l1_loss, l2_loss
from .residual_vq import residual_vectors, residual_vq
from .ring import choose_group
from .sigmoid import sigmoid_loss
from .vq import Quantised, nearest_code, quantise, unit, vq_losses

__all__ = [
    "Quantised",
    "Relaxed",
    "adaptive_weight",
    "choose_group",
    "codebook",
    "cross_entropy",
    "fsq",
    "fsq_vectors",
    "gaussian_kl",
    "gaussian_sample",
    "gumbel_noise",
    "gumbel_softmax",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "infonce_loss",
    "l1_loss",
    "l2_loss",
    "lfq",
    "lfq_entropies",
    "lfq_vectors",
    "logit_laplace_loss",
    "logit_laplace_nll",
    "look_up",
    "map_pixels",
    "most_likely_code",
    "nearest_code",
    "non_saturating_generator_loss",
    "perceptual_loss",
    "quantise",
    "reference",
    "residual_vectors",
    "residual_vq",
    "sigmoid_loss",
    "unit",
    "unmap_pixels",
    "vq_losses",
]
