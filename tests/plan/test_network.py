"""Times of messages, against what one reckons by hand."""

import types

import pytest

from vlm_jax.plan import network
from vlm_jax.plan.hlo import Collective
from vlm_jax.plan.topologies import parse


def chips(width: int, height: int, slices: int = 1) -> list:
    at = [(s, x, y) for s in range(slices) for x in range(width) for y in range(height)]
    return [types.SimpleNamespace(coords=(x, y, 0), slice_index=s, id=i) for i, (s, x, y) in enumerate(at)]


def message(kind: str, groups: str, size: int = 10**9) -> Collective:
    return Collective(kind, 1, size, False, groups, "")


ALL = "[1,256]<=[256]"


@pytest.mark.parametrize("kind, times", [("all-gather", 1), ("all-reduce", 2)])
def test_over_a_whole_pod_four_links_share_the_bytes(kind, times):
    found = network.seconds(message(kind, ALL), parse("v5e:16x16"), chips(16, 16))
    assert found == pytest.approx(times * 1e9 * 255 / 256 / (4 * 50e9))


def test_what_is_scattered_is_as_much_as_is_gathered():
    pod, devices = parse("v5e:16x16"), chips(16, 16)
    scattered = network.seconds(message("reduce-scatter", ALL, 10**9 // 256), pod, devices)
    assert scattered == pytest.approx(network.seconds(message("all-gather", ALL), pod, devices), rel=1e-6)


def test_an_axis_that_does_not_close_has_one_link_into_its_end():
    rows = "mesh['a'=4,'b'=4], device_ids=([4,4]T(1,0)) {'b'}"
    found = network.seconds(message("all-gather", rows), parse("v5e:4x4"), chips(4, 4))
    assert found == pytest.approx(1e9 * 3 / 4 / 50e9)


def test_neighbours_pass_on_without_meeting():
    ring = "{" + ",".join(f"{{{i},{(i + 1) % 16}}}" for i in range(16)) + "}"
    found = network.seconds(message("collective-permute", ring), parse("v5e:16x16"), chips(16, 16))
    assert found == pytest.approx(1e9 / 50e9)


def test_messages_that_go_far_share_links():
    """Chip i of a line of 4 to i + 2: the link in the middle carries both."""
    found = network.seconds(message("collective-permute", "{{0,2},{1,3}}"), parse("v5e:4x4"), chips(4, 4))
    assert found == pytest.approx(2 * 1e9 / 50e9)


def test_a_ring_takes_the_shorter_way_round():
    found = network.seconds(message("collective-permute", "{{15,0}}"), parse("v5e:16x16"), chips(16, 16))
    assert found == pytest.approx(1e9 / 50e9)


def test_between_slices_it_is_the_hosts_network():
    two, devices = parse("2*v5e:4x4"), chips(4, 4, slices=2)
    assert network.seconds(message("send", ""), two, devices) == pytest.approx(1e9 / 3.125e9)
    assert network.seconds(message("all-gather", "{{0,16}}"), two, devices) == pytest.approx(1e9 / 2 / 3.125e9)
    assert network.seconds(message("all-gather", "{{0,1}}"), two, devices) == pytest.approx(1e9 / 2 / 50e9)


def test_nothing_is_said_of_a_cpu():
    assert network.seconds(message("all-reduce", ""), parse("cpu:2"), chips(2, 1)) is None


@pytest.mark.parametrize(
    "groups, first",
    [
        ("{{0,2},{1,3}}", (0, 2)),
        ("[2,2]<=[4]", (0, 1)),
        ("[2,2]<=[2,2]T(1,0)", (0, 2)),
        ("mesh['a'=2,'b'=2] {'a'}", (0, 2)),
        ("mesh['a'=2,'b'=2] {'a','b'}", (0, 1, 2, 3)),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", (0, 2)),
        ("", (0, 1, 2, 3)),
    ],
)
def test_groups_in_all_their_spellings(groups, first):
    assert network._group(groups, 4) == first
