"""Runs of many processes: who takes part, how they find one another, and how they stop and end together."""

from vlm_jax.processes.alone import Alone
from vlm_jax.processes.detect import Job, asked_for, detect
from vlm_jax.processes.link import Link
from vlm_jax.processes.start import join

__all__ = ["Alone", "Job", "Link", "asked_for", "detect", "join"]
