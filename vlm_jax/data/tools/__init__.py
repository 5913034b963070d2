"""Tools of `python -m vlm_jax.data`: each takes any source, shows how far it is, and goes on where it was stopped."""
