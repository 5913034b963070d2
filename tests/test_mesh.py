"""Meshes, rules of partition, and which rows lie where."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from vlm_jax import mesh as meshes
from vlm_jax import partition
from vlm_jax.errors import UserError
from vlm_jax.mesh import Layout

PARAMS = {
    "image": {"blocks": {"kernel": jax.ShapeDtypeStruct((3, 128, 512), np.float32)}},
    "head": {"kernel": jax.ShapeDtypeStruct((256, 96), np.float32), "bias": jax.ShapeDtypeStruct((96,), np.float32)},
}
STACKS = {"image/blocks": 3}


def specs(layout):
    mesh = layout.make(jax.devices())
    return jax.tree.map(lambda s: s.spec, meshes.shardings(PARAMS, layout, mesh, STACKS))


def test_minus_one_takes_what_is_left():
    assert dict(Layout(data=-1, fsdp=4).make(jax.devices()).shape) == {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize(
    ("devices", "tensor", "sizes"),
    [(1, 1, (1, 1, 1)), (8, 1, (1, 8, 1)), (32, 1, (1, 32, 1)), (256, 1, (8, 32, 1)), (24, 1, (3, 8, 1)),
     (256, 8, (1, 32, 8)), (6, 2, (3, 1, 2))],
)  # fmt: skip
def test_parameters_are_split_over_at_most_32_where_both_axes_are_free(devices, tensor, sizes):
    assert tuple(Layout(data=-1, fsdp=-1, tensor=tensor).sizes(devices).values()) == sizes


@given(devices=st.integers(1, 4096), data=st.sampled_from([-1, 1, 2, 3]), fsdp=st.sampled_from([-1, 1, 4, 48]))
def test_sizes_make_the_devices_or_are_refused(devices, data, fsdp):
    fixed = math.prod(size for size in (data, fsdp) if size != -1)
    fits = devices % fixed == 0 if -1 in (data, fsdp) else devices == fixed
    try:
        sizes = Layout(data=data, fsdp=fsdp).sizes(devices)
    except UserError:
        assert not fits
    else:
        assert fits and math.prod(sizes.values()) == devices


@pytest.mark.parametrize("layout", [Layout(data=3), Layout(data=-1, fsdp=3), Layout(data=16)])
def test_meshes_that_do_not_multiply(layout):
    with pytest.raises(UserError, match=r"does not make the 8 device"):
        layout.make(jax.devices())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"fsdp": -1, "tensor": -1}, "for one axis, or data and fsdp"),
        ({"fsdp": 0}, "sizes are positive"),
        ({"rules": ((".*", "-,tensr"),)}, "did you mean 'tensor'"),
        ({"rules": (("(", "fsdp"),)}, "no regular expression"),
    ],
)
def test_bad_layouts(arguments, says):
    with pytest.raises(UserError, match=says):
        Layout(**arguments)


def test_fsdp_takes_the_largest_dimension_and_leaves_small_arrays_whole():
    found = specs(Layout(data=1, fsdp=8))
    assert found["image"]["blocks"]["kernel"] == P(None, None, "fsdp")
    assert found["head"]["kernel"] == P("fsdp", None)
    assert found["head"]["bias"] == P()


def test_explicit_rules_come_first_and_must_fit():
    layout = Layout(data=1, fsdp=4, tensor=2, rules=((r"image/blocks/\d+/kernel", "fsdp,tensor"), (".*", "replicate")))
    assert specs(layout)["image"]["blocks"]["kernel"] == P(None, "fsdp", "tensor")
    assert specs(layout)["head"]["kernel"] == P()
    with pytest.raises(UserError, match="does not fit head/bias"):
        specs(Layout(data=8, rules=(("head/.*", "data,-"),)))


def test_a_rule_that_splits_scanned_layers_is_an_error():
    with pytest.raises(UserError, match="split the scanned layers of image/blocks/kernel"):
        specs(Layout(data=1, fsdp=8, rules=(("image/blocks/01/.*", "replicate"), (".*", "fsdp"))))


def test_optimizer_states_lie_with_their_parameters():
    layout = Layout(data=1, fsdp=8)
    mesh = layout.make(jax.devices())
    places = meshes.shardings(PARAMS, layout, mesh, STACKS)
    state = {
        "count": jax.ShapeDtypeStruct((), np.int32),
        "mu": PARAMS,
        "row": {"head": {"kernel": jax.ShapeDtypeStruct((256,), np.float32)}},
    }
    found = meshes.follow(state, PARAMS, places, mesh)
    assert found["mu"]["head"]["kernel"].spec == P("fsdp", None)
    assert found["count"].spec == P() and found["row"]["head"]["kernel"].spec == P()


@pytest.mark.parametrize("layout", [Layout(), Layout(data=1, fsdp=8), Layout(data=2, fsdp=4), Layout(data=2, tensor=4)])
def test_put_gives_back_the_batch(layout):
    mesh = layout.make(jax.devices())
    batch = {"x": np.arange(48).reshape(16, 3)}
    rows = meshes.local_rows(mesh, 16)
    np.testing.assert_array_equal(rows, np.arange(16))
    placed = meshes.put(batch, rows, 16, mesh)["x"]
    np.testing.assert_array_equal(np.asarray(placed), batch["x"])
    assert placed.sharding.spec == P(("data", "fsdp"))


def test_batches_must_divide_over_the_devices():
    with pytest.raises(UserError, match=r"batch_size=12 is not divisible by the 8 devices .* 8 or 16"):
        meshes.local_rows(Layout().make(jax.devices()), 12)


def test_explain_names_the_rule():
    layout = Layout(data=1, fsdp=8)
    lines = meshes.explain(PARAMS, layout, layout.make(jax.devices()), STACKS)
    assert len(lines) == 5 and lines[2].name == "image/blocks/00/kernel"
    assert lines[2].bytes_per_device == 128 * 512 * 4 // 8 and "largest dimension" in str(lines[2])
    assert "below min_size" in str(lines[0])


def test_large_parameters_that_stay_whole_are_told():
    layout = Layout(data=1, fsdp=8)
    mesh = layout.make(jax.devices())
    params = {"odd": jax.ShapeDtypeStruct((1001, 1001), np.float32)}
    (line,) = partition.warnings(meshes.explain(params, layout, mesh, {}), mesh)
    assert "odd (1001, 1001) is whole on every device" in line and "fsdp=8" in line
    assert not partition.warnings(
        meshes.explain(params, Layout(), Layout().make(jax.devices()), {}), Layout().make(jax.devices())
    )


@pytest.mark.parametrize(
    ("name", "shape", "spec"),
    [
        ("image/blocks/00/attn/qkv/kernel", (64, 192), P(("fsdp", "tensor"), None)),
        ("image/blocks/00/attn/out/kernel", (64, 64), P("tensor", "fsdp")),
        ("image/blocks/00/mlp/fc1/kernel", (64, 256), P("fsdp", "tensor")),
        ("image/blocks/00/mlp/fc2/kernel", (256, 64), P("tensor", "fsdp")),
        ("image/pool/kv/kernel", (64, 128), P(("fsdp", "tensor"), None)),
        ("text/embed/token", (1000, 64), P("tensor", "fsdp")),
        ("image/embed/patch/kernel", (4, 4, 3, 64), P(None, None, None, "fsdp")),
        ("text/head/kernel", (64, 30), P("fsdp", None)),
        ("image/blocks/00/mlp/fc1/kernel", (63, 256), P(None, "tensor")),
        ("image/blocks/00/mlp/fc1/bias", (256,), P()),
    ],
)
def test_parameters_go_by_their_logical_axes(name, shape, spec):
    layout = Layout(data=2, fsdp=2, tensor=2, min_size=512)
    assert partition.place(name, shape, layout, layout.make(jax.devices())).spec == spec
