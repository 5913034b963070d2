import json

import jax
import jax.numpy as jnp
import pytest

from tests.checkpoint.small_runs import META, STACKS, assert_identical, make_items, over, put, shapes, unrolled
from vlm_jax import tree
from vlm_jax.checkpoint import Store, latest_step, read_meta
from vlm_jax.checkpoint.fingerprint import fingerprint
from vlm_jax.errors import UserError

ITEMS = make_items(1)


def fail(line: str) -> None:
    raise AssertionError(line)


def saved(workdir, items=None, stacks=STACKS, step: int = 5):
    with Store(workdir, stacks=stacks, warn=fail) as store:
        store.save(step, ITEMS if items is None else items, META)
    return workdir


def restored(workdir, items=None, stacks=STACKS, place=None):
    abstract = shapes(ITEMS if items is None else items, *([place] if place else []))
    return Store(workdir, stacks=stacks, warn=fail).restore_latest(abstract)


def test_round_trip_is_bit_identical(tmp_path):
    step, items, meta = restored(saved(tmp_path))
    assert step == 5
    assert_identical(items, ITEMS)
    assert {key: meta[key] for key in META} == META
    assert (meta["format"], meta["step"], meta["stage"]) == (1, 5, 0)


def test_what_lies_on_disk(tmp_path):
    folder = saved(tmp_path) / "checkpoints" / "5"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"params", "opt", "ema", "meta"}
    meta = json.loads((folder / "meta" / "metadata").read_text())
    kernel = "image/blocks/02/mlp/kernel"
    assert meta["arrays"][f"params/{kernel}"] == "float32[32,64]"
    assert meta["fingerprints"][f"params/{kernel}"] == fingerprint(tree.unstack(ITEMS["params"], STACKS))[kernel]
    assert not [name for name in meta["fingerprints"] if "blocks/mlp" in name]
    assert read_meta(folder)["config"] == META["config"]


def test_special_values_keep_their_bits(tmp_path):
    items = {"params": {"x": jnp.array([jnp.nan, -jnp.nan, jnp.inf, -jnp.inf, -0.0, 1e-45], jnp.float32)}}
    _, got, _ = restored(saved(tmp_path, items), items)
    assert_identical(got, items)


def test_empty_arrays_come_back(tmp_path):
    items = {"params": {"x": jnp.ones(3), "none": jnp.zeros((0, 4))}}
    _, got, _ = restored(saved(tmp_path, items), items)
    assert_identical(got, items)


@pytest.mark.parametrize("scanned_first", [True, False])
def test_scanned_and_unrolled_restore_each_other(tmp_path, scanned_first):
    scanned, plain = (ITEMS, STACKS), (unrolled(ITEMS), {})
    (first, first_stacks), (second, second_stacks) = (scanned, plain) if scanned_first else (plain, scanned)
    saved(tmp_path, first, first_stacks)
    _, items, _ = restored(tmp_path, second, second_stacks)
    assert_identical(items, second)


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"data": 2, "fsdp": 4}, {"data": 2}], ids=str)
@pytest.mark.parametrize("other_axes", [{"one": 1}, {"fsdp": 8}], ids=str)
def test_other_devices_bit_identical(tmp_path, axes, other_axes):
    saved(tmp_path, put(ITEMS, over(**other_axes)))
    place = over(**axes)
    _, items, _ = restored(tmp_path, place=place)
    assert_identical(items, ITEMS)
    for name, leaf in tree.flatten(items).items():
        assert leaf.sharding.is_equivalent_to(place(leaf), leaf.ndim), name


def test_a_sharding_along_the_layers(tmp_path):
    items = {"params": {"blocks": {"kernel": jnp.arange(32.0).reshape(8, 4)}}}
    place = over(fsdp=8)
    saved(tmp_path, put(items, place), {"blocks": 8})
    _, got, _ = restored(tmp_path, items, {"blocks": 8}, place)
    assert_identical(got, items)
    assert got["params"]["blocks"]["kernel"].sharding.shard_shape((8, 4)) == (1, 4)


def test_arrays_may_be_donated_after_save(tmp_path):
    overwrite = jax.jit(lambda items: jax.tree.map(lambda x: x * 0 + 7, items), donate_argnums=0)
    with Store(tmp_path, stacks=STACKS, warn=fail) as store:
        for step in (1, 2):
            items = make_items(step)
            store.save(step, items, META)
            jax.block_until_ready(overwrite({"params": items["params"], "opt": items["opt"]}))
            assert items["params"]["image"]["blocks"]["mlp"]["kernel"].is_deleted()
    _, got, _ = restored(tmp_path)
    assert_identical(got, make_items(2))


def test_only_the_newest_are_kept(tmp_path):
    with Store(tmp_path, keep=2, warn=fail) as store:
        for step in (1, 2, 30, 4000):
            store.save(step, {"params": {"x": jnp.full(3, step)}}, {})
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [30, 4000]
    assert latest_step(tmp_path) == 4000


def test_a_step_is_saved_once(tmp_path):
    with Store(tmp_path, stacks=STACKS, warn=fail) as store:
        store.save(5, ITEMS, META)
        store.save(5, make_items(2), META)
        assert_identical(store.restore_latest(shapes(ITEMS))[1], ITEMS)
        store.save(5, make_items(2), META)
        store.close()
        store.save(6, make_items(2), META)  # usable again
    assert restored(tmp_path)[0] == 6
    with pytest.raises(UserError, match="another run"):
        Store(tmp_path, stacks=STACKS).save(6, ITEMS, META)


def test_nothing_saved_yet(tmp_path):
    assert restored(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()
    assert latest_step(tmp_path / "none") is None


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p | {"logit_scale": jnp.zeros(2)}, r"params/logit_scale is float32\[\] there and float32\[2\] here"),
        (lambda p: p | {"logit_scale": jnp.int32(0)}, r"float32\[\] there and int32\[\] here"),
        (lambda p: p | {"logit_bias": jnp.float32(0)}, r"params/logit_bias is missing there and float32\[\] here"),
        (lambda p: {"image": p["image"]}, r"params/logit_scale is float32\[\] there and missing here"),
    ],
    ids=["shape", "dtype", "new", "gone"],
)
def test_another_model(tmp_path, change, message):
    saved(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        restored(tmp_path, {**ITEMS, "params": change(ITEMS["params"])})
    assert "\n" not in str(error.value)


def test_another_set_of_items_names_arrays_of_many_layers_once(tmp_path):
    saved(tmp_path)
    with pytest.raises(UserError) as error:
        restored(tmp_path, {"params": ITEMS["params"], "opt": ITEMS["opt"]})
    assert "ema/image/blocks/*/mlp/kernel (3 arrays) is float32[32,64] there and missing here; " in str(error.value)
    assert "ema/logit_scale is float32[] there and missing here." in str(error.value)


def test_of_very_many_arrays_some_are_named(tmp_path):
    saved(tmp_path, {"params": {f"x{i}": jnp.zeros(2) for i in range(30)}})
    with pytest.raises(UserError, match=r"; and 11 more\.$"):
        restored(tmp_path, {"params": {"y": jnp.zeros(2)}})


def test_milestones_stay(tmp_path):
    with Store(tmp_path, keep=2, warn=fail) as store:
        for step in (1, 2, 3):
            store.save(step, {"params": {"x": jnp.full(3, step)}}, {"milestone": step == 2})
    with Store(tmp_path, keep=1, warn=fail) as store:  # of another process, told nothing of them
        for step in (4, 5):
            store.save(step, {"params": {"x": jnp.full(3, step)}}, {"milestone": False})
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 5]


def test_a_later_format(tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_jax.checkpoint.folder.FORMAT", 2)
    saved(tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError, match="format 2"):
        restored(tmp_path)
