"""Devices of named topologies, where the TPU compiler is installed."""

import pytest


@pytest.fixture(scope="session")
def tpu():
    """`tpu("v5e:2x2") -> devices`."""
    pytest.importorskip("libtpu", reason="needs libtpu, the TPU compiler")
    from jax.experimental import topologies

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

        def describe(name: str) -> list:
            options = {"chips_per_host_bounds": (1, 1, 1)} if name.endswith(":1x1") else {}
            return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices

        yield describe
