"""A discrete VAE of CIFAR-10 on a CPU, by Gumbel-softmax: 576 bits for an image, one of 512 codes at 8 x 8 places.

    python -m vlm_jax.main --config=dvae_tiny --config.data.source.path='cifar10/train-*.parquet' \\
        --config.evals.reconstructions.source.path='cifar10/test-*.parquet'

A temperature from 1 to 1/16 is DALL-E's (Ramesh et al. 2021, arXiv:2102.12092, appendix A.2), over half of the run; it
and the weight of the KL divergence are ramps in percent of the run, so that they hold for one of any length. That
weight falls, where the paper's rises, so that no code is lost before it is told from others; it, the squared error in
place of the logit-Laplace density, the networks and the schedule are chosen. `dalle_dvae` has the paper's.
What it reaches is in docs/tokenizers.md.
"""

from vlm_jax.configs._autoencoders import TINY, tiny

from vlm_jax.config import bind

VARIANTS = TINY


def get_config(variant: str = ""):
    temperature = bind("models.bottlenecks.base.Ramp", start=1.0, end=1 / 16, percent=50.0)
    beta = bind("models.bottlenecks.base.Ramp", start=1e-3, end=1e-4, percent=50.0)
    config = tiny(variant, bind("models.bottlenecks.gumbel.Gumbel", size=512, temperature=temperature, beta=beta))
    config.optimizer.learning_rate = 4e-3
    return config
