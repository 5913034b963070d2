import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.optim.small_towers import CLOCK, STACKS, gradients, make_params, train
from vlm_jax import tree
from vlm_jax.errors import UserError
from vlm_jax.optim import Constant, Cosine, Optimizer, Rsqrt, merge

LIVE = make_params()
UNROLLED = tree.unstack(LIVE, STACKS)
NAMES = list(tree.flatten(UNROLLED))
SCHEDULE = Cosine(warmup_steps=2)


def close(got: dict, wanted: dict, rtol=1e-5, atol=1e-6) -> None:
    assert got.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], rtol=rtol, atol=atol, err_msg=name)


def assembled(tx: optax.GradientTransformation, steps: int = 4) -> dict:
    params, state = UNROLLED, tx.init(UNROLLED)
    for step in range(steps):
        updates, state = tx.update(gradients(params, step), state, params)
        params = optax.apply_updates(params, updates)
    return tree.flatten(params)


def rate(step):
    return 0.01 * SCHEDULE.make(CLOCK)(step)


def decays(params):
    return tree.map_with_name(lambda name, _: name.endswith(("kernel", "token")), params)


# Each optimizer against optax's own assembly


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (
            Optimizer("adamw", b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.3),
            optax.adamw(rate, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.3, mask=decays),
        ),
        (Optimizer("adamw"), optax.adamw(rate, weight_decay=0.0)),
        (Optimizer("lion", weight_decay=0.3), optax.lion(rate, b1=0.9, b2=0.99, weight_decay=0.3, mask=decays)),
        (Optimizer("sgd", momentum=0.7), optax.sgd(rate, momentum=0.7)),
        (Optimizer("sgd", momentum=0.0), optax.sgd(rate)),
        (Optimizer("sgd", clip_norm=0.5), optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(rate, momentum=0.9))),
    ],
    ids=["adamw", "adamw-no-decay", "lion", "sgd", "sgd-no-momentum", "clipped"],
)
def test_equals_optax(ours, theirs):
    ours = Optimizer(**{**vars(ours), "learning_rate": 0.01, "schedule": SCHEDULE})
    close(train(ours, UNROLLED, {}), assembled(theirs))


def test_adafactor_equals_the_paper():
    """Shazeer and Stern 2018, algorithm 4, with decay min(b2, 1 - t^-0.8) and first moment of the updates."""
    b1, b2 = 0.9, 0.5
    ours = Optimizer("adafactor", learning_rate=0.01, schedule=Constant(), b1=b1, b2=b2, weight_decay=0.1)
    got = train(ours, UNROLLED, {})
    for name in ("image/blocks/01/mlp/kernel", "text/embed/token", "image/ln_post/scale", "text/head/kernel"):
        x = np.asarray(tree.flatten(UNROLLED)[name], np.float64)
        factored = name not in ("image/ln_post/scale", "text/head/kernel")  # [40] and [40, 8]: too small to be
        v = np.zeros_like(x)
        rows, cols, moment = np.zeros(x.shape[:1]), np.zeros(x.shape[-1:]), np.zeros_like(x)
        decayed = 0.0 if name.endswith("scale") else 0.1
        for step in range(4):
            g = np.sin(3.0 * x + step)
            beta = min(b2, 1 - (step + 1.0) ** -0.8)
            if factored:
                rows = beta * rows + (1 - beta) * (g**2).mean(axis=1)
                cols = beta * cols + (1 - beta) * (g**2).mean(axis=0)
                v = rows[:, None] * cols[None, :] / rows.mean()
            else:
                v = beta * v + (1 - beta) * g**2
            moment = b1 * moment + (1 - b1) * g / np.sqrt(v)
            x = x - 0.01 * (moment + decayed * x)
        np.testing.assert_allclose(got[name], x, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "sgd"])
def test_mu_dtype_is_that_of_the_first_moment(name):
    tx, _ = Optimizer(name, mu_dtype="bfloat16").make(UNROLLED, CLOCK, {})
    state = tx.init(UNROLLED)
    narrow = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.bfloat16]
    assert sum(leaf.size for leaf in narrow) == sum(leaf.size for leaf in jax.tree.leaves(UNROLLED))
    updates, _ = tx.update(gradients(UNROLLED, 0), state, UNROLLED)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


def test_the_schedule_is_the_learning_rate():
    _, schedule = Optimizer(learning_rate=0.2, schedule=SCHEDULE).make(LIVE, CLOCK, STACKS)
    np.testing.assert_allclose([float(schedule(s)) for s in (0, 1, 10)], [0.1, 0.2, 0.0], atol=1e-7)


def test_make_takes_shapes():
    abstract = jax.eval_shape(make_params)
    trained, frozen = Optimizer(lock=(("image", 1),)).split(abstract, STACKS)
    tx, _ = Optimizer(lock=(("image", 1),), layer_decay=0.5).make(abstract, CLOCK, STACKS)
    assert jax.tree.leaves(jax.eval_shape(tx.init, trained)) and jax.tree.leaves(frozen)


# Scanned layers learn as unrolled ones do


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "sgd"])
def test_every_optimizer_scanned_equals_unrolled(name):
    optimizer = Optimizer(name, schedule=Rsqrt(), clip_norm=1.0, weight_decay=0.2, freeze=("image/blocks/01/.*",))
    close(train(optimizer, LIVE, STACKS), train(optimizer, UNROLLED, {}))


@pytest.mark.parametrize(
    "rules",
    [
        {"lock": (("image", 1),)},
        {"lock": (("image", "all"), ("text", 0))},
        {"freeze": ("text/blocks/01/.*", ".*/posemb"), "layer_decay": 0.5},
        {"learning_rate_mults": (("image/blocks/0[01]/.*", 0.1), ("image/.*", 2.0))},
        {"weight_decay_mask": ".*/0[12]/.*"},
    ],
    ids=["last-block", "towers", "freeze-and-decay", "multipliers", "mask"],
)
def test_rules_scanned_equal_rules_unrolled(rules):
    optimizer = Optimizer(**{"clip_norm": 1.0, "weight_decay": 0.2, "b1": 0.8, **rules})
    close(train(optimizer, LIVE, STACKS), train(optimizer, UNROLLED, {}))


# Freezing


def changed(optimizer: Optimizer, params=LIVE, stacks=STACKS) -> set[str]:
    before, after = tree.flatten(tree.unstack(params, stacks)), train(optimizer, params, stacks, steps=2)
    return {name for name in before if (np.asarray(before[name]) != np.asarray(after[name])).any()}


def matching(*parts: str) -> set[str]:
    return {name for name in NAMES if any(part in name for part in parts)}


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "sgd"])
@pytest.mark.parametrize("params, stacks", [(LIVE, STACKS), (UNROLLED, {})], ids=["scanned", "unrolled"])
def test_frozen_layers_do_not_move_at_all(name, params, stacks):
    optimizer = Optimizer(name, weight_decay=0.5, freeze=("image/blocks/01/.*", "text/embed/.*", "logit_scale"))
    frozen = matching("image/blocks/01/", "text/embed/", "logit_scale")
    assert changed(optimizer, params, stacks) == set(NAMES) - frozen


@pytest.mark.parametrize(
    "lock, frozen",
    [
        ((("image", "all"),), ["image/"]),
        ((("image", 2),), ["image/embed/", "image/blocks/00/"]),
        ((("image", 0), ("text", 2)), ["image/embed/", "image/blocks/", "text/embed/"]),
    ],
)
def test_lock_keeps_the_last_blocks_and_what_follows_free(lock, frozen):
    for params, stacks in ((LIVE, STACKS), (UNROLLED, {})):
        assert changed(Optimizer(lock=lock), params, stacks) == set(NAMES) - matching(*frozen)


def test_wholly_frozen_leaves_cost_no_state():
    optimizer = Optimizer(lock=(("image", "all"),))
    trained, frozen = optimizer.split(LIVE, STACKS)
    assert set(tree.flatten(frozen)) == {name for name in tree.flatten(LIVE) if name.startswith("image/")}
    tx, _ = optimizer.make(LIVE, CLOCK, STACKS)
    assert not [name for name in tree.flatten(tx.init(trained)) if "image" in name]
    merged = merge(trained, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(LIVE)
    assert all(a is b for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(LIVE)))


def test_frozen_layers_of_a_stack_count_in_no_norm_even_where_not_finite():
    optimizer = Optimizer("sgd", schedule=Constant(), learning_rate=1.0, momentum=0.0, clip_norm=1.0)
    frozen = Optimizer(**{**vars(optimizer), "freeze": ("image/blocks/00/.*",)})
    tx, _ = frozen.make(LIVE, CLOCK, STACKS)
    grads = jax.tree.map(jnp.ones_like, LIVE)
    grads["image"]["blocks"] = jax.tree.map(lambda g: g.at[0].set(jnp.nan), grads["image"]["blocks"])
    updates, _ = tx.update(grads, tx.init(LIVE), LIVE)
    assert float(optax.global_norm(updates)) == pytest.approx(1.0, rel=1e-5)
    assert all((leaf[0] == 0).all() for leaf in jax.tree.leaves(updates["image"]["blocks"]))


# Weight decay and multipliers


def one_update(optimizer: Optimizer, params=UNROLLED, grads=None) -> dict:
    tx, _ = optimizer.make(params, CLOCK, {})
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params) if grads is None else grads, tx.init(params), params)
    return tree.flatten(updates)


def test_weight_decay_by_default_of_matrices_and_token_embeddings():
    updates = one_update(Optimizer(schedule=Constant(), learning_rate=0.1, weight_decay=0.5))
    decayed = {name for name, update in updates.items() if (update != 0).any()}
    assert decayed == matching("/kernel", "/token")
    np.testing.assert_allclose(
        updates["text/embed/token"], -0.05 * np.asarray(UNROLLED["text"]["embed"]["token"]), rtol=1e-6
    )


def test_the_first_multiplier_that_matches_counts_and_scales_the_decay_too():
    mults = (("image/blocks/00/.*", 0.5), ("image/.*", 3.0))
    kwargs = {"schedule": Constant(), "learning_rate": 0.1, "weight_decay": 0.5}
    ones = jax.tree.map(jnp.ones_like, UNROLLED)
    plain = one_update(Optimizer("sgd", **kwargs), grads=ones)
    scaled = one_update(Optimizer("sgd", **kwargs, learning_rate_mults=mults), grads=ones)
    for name in NAMES:
        factor = 0.5 if name.startswith("image/blocks/00/") else 3.0 if name.startswith("image/") else 1.0
        np.testing.assert_allclose(scaled[name], factor * plain[name], rtol=1e-6, err_msg=name)


def test_layer_decay():
    optimizer = Optimizer("sgd", schedule=Constant(), learning_rate=1.0, layer_decay=0.5)
    updates = one_update(optimizer, grads=jax.tree.map(jnp.ones_like, UNROLLED))
    wanted = {
        "image/embed/posemb": 0.5**4,
        "image/embed/patch/kernel": 0.5**4,
        "image/blocks/00/mlp/kernel": 0.5**3,
        "image/blocks/02/mlp/bias": 0.5,
        "image/ln_post/scale": 1.0,
        "image/head/kernel": 1.0,
        "text/embed/token": 0.5**3,
        "text/blocks/00/mlp/bias": 0.5**2,
        "logit_scale": 1.0,
    }
    for name, multiplier in wanted.items():
        np.testing.assert_allclose(updates[name], -multiplier, rtol=1e-6, err_msg=name)


# Mistakes


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"freeze": ("image/blocks/07/.*",)}, r"freeze: 'image/blocks/07/\.\*' matches the whole name of no parameter"),
        ({"freeze": ("posemb",)}, r"did you mean '\.\*posemb\.\*'\?"),
        ({"freeze": ("logit_scal",)}, r"did you mean '\.\*logit_scal\.\*'"),
        ({"freeze": ("logit_scael",)}, r"did you mean 'logit_scale'"),
        ({"freeze": ("(",)}, "no regular expression"),
        ({"freeze": (".*",)}, "nothing to train"),
        ({"lock": (("imgae", 1),)}, r"no tower 'imgae' with blocks; did you mean 'image'"),
        ({"lock": (("image", 4),)}, "'image' has 3 blocks, 4 cannot be left free"),
        ({"learning_rate_mults": (("nothing", 2.0),)}, "learning_rate_mults: 'nothing'"),
        ({"weight_decay": 0.1, "weight_decay_mask": "nothing"}, "weight_decay_mask: 'nothing'"),
    ],
)
def test_rules_that_fit_no_parameter(kwargs, message):
    optimizer = Optimizer(**kwargs)
    with pytest.raises(UserError, match=message) as error:
        optimizer.split(LIVE, STACKS)
        optimizer.make(LIVE, CLOCK, STACKS)
    assert "\n" not in str(error.value)


def test_layer_decay_without_layers():
    with pytest.raises(UserError, match="blocks/NN"):
        Optimizer(layer_decay=0.5).make({"kernel": jnp.ones(3)}, CLOCK, {})


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"name": "adam"}, "did you mean 'adamw'"),
        ({"learning_rate": 0.0}, "above zero"),
        ({"b2": 1.0}, "b2=1"),
        ({"weight_decay": -0.1}, "must not be negative"),
        ({"clip_norm": 0.0}, "None does not clip"),
        ({"layer_decay": 1.5}, "at most 1"),
        ({"mu_dtype": "bf16"}, "give bfloat16"),
        ({"learning_rate_mults": ((".*", 0.0),)}, "freeze"),
        ({"lock": (("image", "last"),)}, "a number of last blocks"),
    ],
)
def test_values_that_no_model_makes_right(kwargs, message):
    with pytest.raises(UserError, match=message):
        Optimizer(**kwargs)
