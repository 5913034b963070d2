"""Fields of a target as flags of the command line."""

from __future__ import annotations

import dataclasses

from vlm_jax.errors import UserError


def flag(help: str, **default) -> dataclasses.Field:
    """A field whose `help` the command line shows; without a default the flag is required."""
    return dataclasses.field(metadata={"help": help}, **default)


def need_tpu(target: str, job) -> None:
    if not job.topology.is_tpu:
        raise UserError(f"{target} runs TPUs, and {job.topology} is none; for GPUs: slurm, skypilot or local.")
