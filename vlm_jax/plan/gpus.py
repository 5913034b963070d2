"""What XLA must know of a GPU to compile for it where there is none: a `GpuTargetConfigProto` as text.

Numbers as the driver reports them; XLA has the same under xla/backends/gpu/target_config/specs.
"""

from __future__ import annotations

import dataclasses

from vlm_jax.plan.topologies import Topology


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU's name, compute capability, multiprocessors, clock, memories (bytes) and bandwidth (bytes a second)."""

    name: str
    major: int
    cores: int
    clock_ghz: float
    memory: int
    bandwidth: int
    l2: int
    shared: int

    @property
    def proto(self) -> str:
        accelerated = " feature_extension: ACCELERATED_FEATURES" if self.major >= 9 else ""
        return f"""
gpu_device_info {{
  name: "{self.name}" device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: {self.major} minor: 0{accelerated} }}
  core_count: {self.cores} fpus_per_core: {128 if self.major >= 9 else 64} clock_rate_ghz: {self.clock_ghz}
  device_memory_size: {self.memory} memory_bandwidth: {self.bandwidth} l2_cache_size: {self.l2}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_core: {self.shared} shared_memory_per_block_optin: {self.shared - 1024}
  shared_memory_per_block: 49152
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  driver_version: "12.8.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{self.name}"
"""


GPUS = {
    "h200": Gpu("NVIDIA H200", 9, 132, 1.98, 150_110_011_392, 4_890_000_000_000, 62_914_560, 233_472),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 9, 132, 1.98, 84_942_979_072, 3_352_320_000_000, 52_428_800, 233_472),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 1.41, 84_987_740_160, 2_039_000_000_000, 41_943_040, 167_936),
}


def devices(topology: Topology) -> list:
    """Devices of 8-GPU nodes, to compile for.

    There is nothing to tune on, and what XLA tiles without tuning does not always compile: products are cuBLAS's.
    """
    import os

    import jax
    from jax.experimental import topologies

    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    jax.devices("cpu")  # plugins are found when the first backend starts
    node = topology.chip.node
    described = topologies.get_topology_desc(
        platform="cuda",
        target_config=GPUS[topology.chip_name].proto,
        topology=f"1x{-(-topology.size // node)}x{min(topology.size, node)}",
    )
    return list(described.devices)
