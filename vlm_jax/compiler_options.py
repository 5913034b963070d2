"""Flags that the compiler of a platform is given with the train step, per compile and not for the whole process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Off by default in libtpu; only together do they send gradients while the backward pass goes on. What is combined into
# one message of many arrays waits for the last of them, and the step for it: so only small arrays are combined.
TPU_OVERLAP = {
    "xla_jf_crs_combiner_threshold_in_bytes": 2**20,
    "xla_enable_async_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
    "xla_tpu_overlap_compute_collective_tc": True,
}
GPU_OVERLAP = {"xla_gpu_enable_latency_hiding_scheduler": True}


def compiler_options(devices: Sequence[Any], more: Mapping[str, Any], deterministic: bool = False) -> dict[str, Any]:
    """Flags for a step on `devices`: collectives beside other work where there are several, and `more`, which wins.

    `deterministic` keeps GPUs from sums whose order changes; CPUs and TPUs have none.
    """
    gpu = devices[0].platform in ("gpu", "cuda")
    overlap = TPU_OVERLAP if devices[0].platform == "tpu" else GPU_OVERLAP if gpu else {}
    same_bits = {"xla_gpu_deterministic_ops": True} if gpu and deterministic else {}
    return {**(overlap if len(devices) > 1 else {}), **same_bits, **more}
