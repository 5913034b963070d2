"""bind, build, check, overrides, text and JSON of configs."""

import dataclasses
import json

import pytest

from vlm_jax import config as configs
from vlm_jax.config import bind, build, late
from vlm_jax.errors import UserError
from vlm_jax.overrides import apply_bind, override, override_all


@dataclasses.dataclass(frozen=True)
class Leaf:
    size: int = 1
    rate: float | None = None
    name: str = "leaf"


@dataclasses.dataclass(frozen=True)
class Other:
    size: int = 1


@dataclasses.dataclass(frozen=True)
class Root:
    left: Leaf
    right: Leaf = Leaf(size=2)
    numbers: tuple[int, ...] = ()
    count: int = 0


HERE = __name__


def tree(**changes):
    return bind(f"{HERE}.Root", **{"left": bind(f"{HERE}.Leaf", size=3), **changes})


def test_build_calls_targets_recursively():
    assert build(tree(numbers=(1, 2))) == Root(left=Leaf(size=3), numbers=(1, 2))


def test_one_node_is_one_object():
    shared = bind(f"{HERE}.Leaf", size=9)
    root = build(bind(f"{HERE}.Root", left=shared, right=shared))
    assert root.left is root.right


def test_late_values_are_filled_or_missed():
    node = tree(count=late("vocab_size"))
    assert build(node, vocab_size=7).count == 7
    with pytest.raises(UserError, match="'vocab_size' is known only at run time"):
        build(node)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"coumt": 1}, "config.coumt: Root has no parameter 'coumt'; did you mean 'count'"),
        ({"count": "x"}, "config.count='x' is of the wrong type: it takes int"),
        ({"left": bind(f"{HERE}.Leaf", sise=1)}, "config.left.sise: Leaf has no parameter 'sise'; did you mean 'size'"),
        ({"left": bind(f"{HERE}.Other")}, "config.left: .*Other is of the wrong type: it takes Leaf"),
        ({"left": bind(f"{HERE}.Lef")}, "has no component 'Lef'; did you mean 'Leaf'"),
        ({"count": bind(f"{HERE}.Leaf")}, "config.count: .* is of the wrong type: it takes int"),
    ],
)
def test_check_names_what_is_wrong_and_what_is_near(changes, says):
    with pytest.raises(UserError, match=says):
        configs.check(tree(**changes))


def test_check_misses_required_parameters():
    with pytest.raises(UserError, match="Root needs left"):
        configs.check(bind(f"{HERE}.Root"))


def test_unknown_components_get_near_names():
    with pytest.raises(UserError, match=r"no component 'models.vt.ViT'; did you mean 'models.vit.ViT'"):
        configs.resolve("models.vt.ViT")
    with pytest.raises(UserError, match="did you mean 'ViT'"):
        configs.resolve("models.vit.VitT")


def test_overrides_reach_defaults_that_the_recipe_leaves_out():
    config = tree()
    override(config, "left.rate", "1e-3")
    override(config, "right.size", "1e2")
    override(config, "numbers", "4,5")
    assert build(config) == Root(left=Leaf(3, 1e-3), right=Leaf(size=100), numbers=(4, 5))


def test_a_component_is_replaced_by_naming_another():
    config = tree()
    override(config, "left", f"{HERE}.Leaf")
    assert build(config).left == Leaf()


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("lft.size", "1", "Root has no parameter 'lft'; did you mean 'left'"),
        ("left.siz", "1", "Leaf has no parameter 'siz'; did you mean 'size'"),
        ("left.size", "big", "takes int"),
        ("count.size", "1", "config.count is 0, a plain value"),
    ],
)
def test_bad_overrides(key, text, says):
    with pytest.raises(UserError, match=says):
        override(tree(), key, text)


def test_one_unit_takes_the_place_of_another():
    config = bind("optim.schedules.Cosine", warmup_steps=10)
    override_all(config, [("warmup_percent", "5")])
    assert (config.warmup_steps, config.warmup_percent) == (None, 5)
    override_all(config, [("warmup_percent", "5"), ("warmup_steps", "3")])
    assert (config.warmup_steps, config.warmup_percent) == (3, 5)  # an error where it is used


def test_an_optional_component_opens_itself():
    config = bind("experiment.Experiment")
    override(config, "profile.start", "20")
    assert build(config.profile).start == 20


def test_an_entry_of_a_plain_mapping_is_left_out_by_none():
    config = bind("experiment.Experiment", evals=dict(a=bind(f"{HERE}.Leaf"), b=bind(f"{HERE}.Leaf")))
    override(config, "evals.a", "None")
    assert list(config.evals) == ["b"]


def test_bind_flag_sets_every_node_of_a_target():
    config = tree(right=bind(f"{HERE}.Leaf"))
    assert apply_bind(config, "Leaf.size=8") == 2
    root = build(config)
    assert (root.left.size, root.right.size) == (8, 8)


def test_bind_flag_errors():
    with pytest.raises(UserError, match="binds no 'Laef'; did you mean 'Leaf'"):
        apply_bind(tree(), "Laef.size=1")
    with pytest.raises(UserError, match="Leaf has no parameter 'sise'; did you mean 'size'"):
        apply_bind(tree(), "Leaf.sise=1")
    with pytest.raises(UserError, match=r"should read 'Target.param=VALUE'"):
        apply_bind(tree(), "Leaf")
    config = bind("tests.x.A", a=bind(f"{HERE}.Leaf"), b=bind("somewhere.else.Leaf"))
    with pytest.raises(UserError, match=r"ambiguous; it means somewhere.else.Leaf or .*Leaf"):
        apply_bind(config, "Leaf.size=1")


def test_references_follow_what_they_refer_to():
    config = tree(count=5)
    config.left.size = config.get_ref("count")
    override(config, "count", "12")
    assert build(config).left.size == 12


def test_fill_writes_every_default_out_and_json_brings_it_back():
    filled = configs.fill(tree())
    assert filled["right"]["size"] == 2 and filled["left"]["name"] == "leaf"
    again = configs.from_json(configs.to_json(filled), "here", known=configs.targets(filled))
    assert configs.lines(configs.fill(again)) == configs.lines(filled)
    assert build(again) == build(tree())


def test_diff_names_what_changed_and_ignores_how_it_was_written():
    a, b = configs.fill(tree(numbers=(1,))), configs.fill(tree(numbers=[1]))
    assert configs.diff(a, b) == []
    assert configs.diff(a, configs.fill(tree(numbers=(1,), count=2))) == ["count: 0 -> 2"]


def test_broken_json_is_one_line():
    with pytest.raises(UserError, match=r"config\.json is no config"):
        configs.from_json("{", "config.json")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "data.workers.pickle",
        "vlm_jax.launch.spawn.spawn",
        "main.main",
        "a",
        "",
        ".x",
        "..x.y",
    ],
)
def test_a_file_binds_components_of_ours_alone(target, monkeypatch):
    text = json.dumps({"_target": "experiment.Experiment", "evals": {"a": [{"_target": target, "args": "touch x"}]}})
    with pytest.raises(UserError, match="no component of vlm_jax, and files run no other code"):
        configs.from_json(text, "config.json")
    assert configs.targets(configs.from_json(text, "config.json", known=[target])) == {"experiment.Experiment", target}
    if target == "os.system":
        monkeypatch.setenv("VLM_JAX_TRUST", "posix, os")
        configs.from_json(text, "config.json")


def test_every_recipe_comes_back_from_its_file():
    for name in configs.recipes():
        config = configs.load(name)
        again = configs.from_json(configs.to_json(config), name)
        assert sorted(configs.lines(again)) == sorted(configs.lines(configs.plain(config)))


def test_a_recipe_wins_over_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = configs.load("clip_tiny")
    run.total_examples = 7
    (tmp_path / "siglip_tiny").mkdir()
    (tmp_path / "siglip_tiny" / "config.json").write_text(configs.to_json(configs.fill(run)))
    assert configs.load("siglip_tiny").total_examples == 224_000
    assert configs.load("./siglip_tiny").total_examples == 7 and configs.is_workdir("siglip_tiny")
