"""Eight simulated CPU devices for every test, and the real data where it is there."""

import importlib.metadata
import os
import pathlib

import pytest

# jax reads these at its first use, which comes after this file.

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs with collectives that are in flight together can starve each other of the few threads there are.
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")
# Programs of tests run for milliseconds and compile for seconds: compile them fast.
FAST = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # halves it; XLA refuses flags that it no longer knows
    FAST += " --xla_cpu_use_fusion_emitters=false"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} {FAST} --xla_force_host_platform_device_count=8".strip()
    )


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data (`VLM_JAX_SHARED`, default `../shared`)."""
    root = pathlib.Path(__file__).parents[1]
    folder = (root / os.environ.get("VLM_JAX_SHARED", "../shared") / "data").resolve()
    if not folder.is_dir():
        pytest.skip(f"needs the real data of {folder}; set VLM_JAX_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def tpu():
    """`tpu("v5e:2x2") -> devices` that programs can be compiled for, where the TPU compiler is installed."""
    pytest.importorskip("libtpu", reason="needs libtpu, the TPU compiler")
    from jax.experimental import topologies

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

        def describe(name: str) -> list:
            options = {"chips_per_host_bounds": (1, 1, 1)} if name.endswith(":1x1") else {}
            return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices

        yield describe
