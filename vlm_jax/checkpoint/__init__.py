"""Checkpoints over Orbax, with a fingerprint of every array. Orbax itself is imported where it is used."""

from vlm_jax.checkpoint.folder import latest_step, read_meta
from vlm_jax.checkpoint.load import load_params
from vlm_jax.checkpoint.store import Store

__all__ = ["Store", "latest_step", "load_params", "read_meta"]
