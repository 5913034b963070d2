"""A whole model from compiles of few layers, against the whole model."""

import dataclasses

import pytest

from vlm_jax import config as configs
from vlm_jax import stages
from vlm_jax.errors import UserError
from vlm_jax.overrides import override_all
from vlm_jax.plan import estimate, subject
from vlm_jax.plan.compile import Compiled, Request, used
from vlm_jax.plan.subject import Change


def small(**overrides) -> configs.ConfigDict:
    """siglip_tiny with other numbers, by their keys."""
    config = configs.load("siglip_tiny")
    base = {"batch_size": 16, "task.model.image.width": 32, "task.model.text.width": 32}
    base |= {"task.model.image.num_heads": 2, "task.model.text.num_heads": 2}
    base |= {"task.model.image.mlp_dim": 64, "task.model.text.mlp_dim": 64}
    override_all(config, [(key, str(value)) for key, value in (base | overrides).items()])
    return config


def compiler(config, topology="cpu:4", cache=None) -> estimate.Compiler:
    return estimate.Compiler(subject.experiment_of(config), configs.to_json(config), topology, cache)


def compiled(**values) -> Compiled:
    held = dict.fromkeys(("arguments", "outputs", "aliased", "temporaries", "code"), 0.0)
    return Compiled("", None, 100, {**held, **values}, {}, 0.0, False, {})


def test_extrapolation_is_linear_in_each_depth():
    found = estimate.extrapolate(compiled(cycles=10.0), {12: compiled(cycles=14.0), 24: compiled(cycles=11.0)})
    assert found.values["cycles"] == 10 + 10 * 4 + 22 * 1
    assert not found.error


def test_what_only_the_deeper_one_has_is_counted():
    deeper = dataclasses.replace(compiled(**{"all-gather/sync/count": 3.0}), kernels={"k": [2.0, 10.0]})
    found = estimate.extrapolate(compiled(), {12: deeper})
    assert found.values["all-gather/sync/count"] == 30
    assert found.kernels == {"k": [20.0, 100.0]}


def test_memory_is_extrapolated_from_refusals_too():
    refused = dataclasses.replace(compiled(), error="no", needed=200)
    found = estimate.extrapolate(refused, {12: dataclasses.replace(refused, needed=230)})
    assert (found.error, found.needed) == ("no", 500)


def test_more_than_the_limit_does_not_fit():
    found = estimate.extrapolate(compiled(temporaries=60.0), {12: compiled(temporaries=65.0)})
    assert used(found.values) == found.needed == 110
    assert not estimate.Estimate(found, "", True, False).fits


@pytest.mark.full
def test_it_tells_what_the_whole_model_takes():
    """Parameters, model FLOPs and messages to the byte; memory within a tenth (XLA reuses buffers as it likes)."""
    config = small(**{"task.model.image.depth": 5, "task.model.text.depth": 4})
    both = compiler(config)
    extrapolated, whole = both(), both(whole=True)
    assert extrapolated.extrapolated and not whole.extrapolated
    a, b = extrapolated.compiled.values, whole.compiled.values
    for name in ("params", "opt", "parameters", "model_flops", "arguments", "batch"):
        assert a[name] == pytest.approx(b[name], rel=1e-9), name
    assert a["all-reduce/sync/bytes"] == pytest.approx(b["all-reduce/sync/bytes"], rel=1e-9)
    assert a["temporaries"] == pytest.approx(b["temporaries"], rel=0.1)


def test_a_program_is_compiled_once(tmp_path):
    config = small(**{"task.model.image.depth": 1, "task.model.text.depth": 1})
    first, again = (compiler(config, "cpu:2", str(tmp_path))() for _ in range(2))
    assert not first.compiled.cached and again.compiled.cached
    assert first.compiled.values == again.compiled.values
    assert "compiled before" in again.source


def test_a_compiler_that_dies_refuses(monkeypatch, tmp_path):
    monkeypatch.setattr(estimate.sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text("#!/bin/sh\necho 'F0000 Check failed: shape' >&2\nexit 134\n")
    (tmp_path / "python").chmod(0o755)
    found = estimate._compile(Request("{}", "cpu:1"))
    assert found.error == "the compiler ended itself: F0000 Check failed: shape"
    assert not estimate.Estimate(found, "", False, False).fits


def test_changes_reach_the_experiment_and_name_their_arguments():
    experiment = subject.experiment_of(small(**{"task.model.image.depth": 5}))
    change = Change(depths=((5, 2),), remat="block", microbatches=4, fsdp=2)
    changed = subject.apply(experiment, change)
    assert changed.task.model.image.geometry.depth == 2
    assert changed.task.model.text.geometry.depth == experiment.task.model.text.geometry.depth
    assert {t.remat for t in subject.towers(changed.task)} == {"block"}
    assert (changed.microbatches, changed.mesh.fsdp) == (4, 2)
    assert change.overrides(experiment) == [
        "--bind=TextTransformer.remat=block",
        "--bind=ViT.remat=block",
        "--config.microbatches=4",
        "--config.mesh.fsdp=2",
    ]
    assert Change().overrides(experiment) == []


@pytest.mark.parametrize("name", list(configs.recipes()))
def test_every_recipe_can_be_planned_without_its_data_and_tokenizer(name):
    config = configs.load(name)
    staged = stages.names(config)
    experiment = subject.experiment_of(stages.of(config, staged[-1]) if staged else config)
    assert experiment.batch_size and experiment.clock.total
    assert subject.unrolled_depths(experiment) or all(t.scan for t in subject.towers(experiment.task))


def test_a_vocabulary_that_only_the_tokenizer_knows_is_asked_for():
    config = small(tokenizer="missing.model")
    assert configs.is_late(config.task.model.text.vocab_size)
    with pytest.raises(UserError, match=r"size of the vocabulary: give --config\.tokenizer"):
        subject.experiment_of(config)


def test_requests_survive_json():
    request = Request("{}", "v5e:2x2", Change(depths=((12, 2),), remat="block"), True, "cache")
    assert Request.from_json(request.to_json()) == request
