"""What steps of the recipes may need and send on TPUs, by the real compiler: `tests/golden/budgets.json`.

A step that needs a twentieth more memory, or sends a twentieth more, fails; so does one that needs or sends much less,
for then the budget is to be written anew: `python -m tests.test_budgets` compiles all of them (about an hour on two
cores), `python -m tests.test_budgets siglip_b16:v5e:2x2` one. `-m full` tests those that take minutes.
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
import sys

import pytest

from vlm_jax import config as configs
from vlm_jax import stages
from vlm_jax.overrides import override_all
from vlm_jax.plan import subject
from vlm_jax.plan.estimate import Compiler, Estimate
from vlm_jax.plan.result import result
from vlm_jax.plan.topologies import parse

GOLDEN = pathlib.Path(__file__).parent / "golden" / "budgets.json"
# recipe:topology, or recipe#stage:topology -> changes to it, and whether at low effort, where there is no estimate of
# time.
QUICK = {"siglip_b16:v5e:2x2": ({"batch_size": 128}, True)}
FULL = {
    f"{recipe}:{chip}:16x16": (
        {"mesh.fsdp": 16} if recipe == "siglip_so400m14" else {},
        (recipe, chip) != ("siglip_b16", "v5e"),
    )
    for recipe in ("siglip_b16", "siglip_so400m14", "clip_b16")
    for chip in ("v5e", "v6e")
}
FULL |= {"lm_135m:v6e:2x2": ({"batch_size": 64}, True), "fuyu_8b:v6e:16x16": ({"mesh.tensor": 8}, True)}
CASES = ("lm_1b:v6e:4x8", "lm_7b:v6e:16x16", "lm_7b:v5p:4x8x8", "fuyu_8b:v5p:4x4x4", "llava_7b#b_tuning:v6e:4x8",
         "llava_7b#b_tuning:v5p:2x4x4", "eve_7b#c_tuning:v6e:4x8", "eve_7b#c_tuning:v5p:2x4x4",
         "eve2_7b#e_tuning:v6e:16x16", "eve2_7b#e_tuning:v5p:4x8x8", "coca_b32:v6e:16x16", "coca_l14:v5p:4x8x8",
         "cappa_b16:v6e:16x16", "trocr_base:v6e:8x8", "siglip2_b16:v6e:16x16")  # fmt: skip
FULL |= dict.fromkeys(CASES, ({}, True)) | {"chameleon_7b:v6e:16x16": ({"tokenizer": "train:57341"}, True)}
SLACK = 1.05  # the compiler does not always lay out memory the same way


@functools.cache
def measured(case: str) -> dict:
    """Bytes of one device and one step of the whole recipe, extrapolated from few layers; times as multiples."""
    name, _, topology = case.partition(":")
    recipe, _, stage = name.partition("#")
    changes, coarse = {**QUICK, **FULL}[case]
    config = configs.load(recipe)
    config = stages.of(config, stage) if stage else config
    override_all(config, [(key, str(value)) for key, value in changes.items()])
    experiment = subject.experiment_of(config)
    estimate: Estimate = Compiler(experiment, configs.to_json(config), topology, "~/.cache/vlm_jax/plan")(coarse=coarse)
    found = result(estimate, experiment, parse(topology), knows_total=True)
    assert found["fits"], found["error"]
    out = {
        "params": found["hbm_bytes"]["params"],
        "opt": found["hbm_bytes"]["opt"],
        "temporaries": found["hbm_bytes"]["temporaries"],
        **{f"{kind} {what}": c[what] for kind, c in found["collectives"].items() for what in ("count", "bytes")},
    }
    if coarse:  # what runs beside what is not settled at low effort
        return out
    waited = {f"{kind} waited for": c["count"] - c["asynchronous"] for kind, c in found["collectives"].items()}
    return out | waited | {"compute over floor": round(found["compute_ms"] / found["floor_ms"], 3)}


def holds(case: str) -> None:
    budget, found = json.loads(GOLDEN.read_text())[case], measured(case)
    over = {name: (value, budget.get(name, 0)) for name, value in found.items() if value > SLACK * budget.get(name, 0)}
    assert not over, f"{case} needs more than its budget: {over}"
    under = {name: (found.get(name, 0), value) for name, value in budget.items() if found.get(name, 0) < 0.8 * value}
    assert not under, f"{case} needs much less: `python -m tests.test_budgets {case}` writes the budget anew. {under}"


@pytest.fixture(autouse=True)
def compiler_for_tpus():
    pytest.importorskip("libtpu", reason="needs libtpu, the TPU compiler")


@pytest.mark.parametrize("case", QUICK)
def test_budget(case):
    holds(case)


@pytest.mark.full
@pytest.mark.parametrize("case", FULL)
def test_whole_budget(case):
    holds(case)


def scattered(budget: dict) -> int:
    """Bytes of gradients that are sent to 32 parts: their sums, and the steps of rings."""
    return 32 * budget.get("reduce-scatter bytes", 0) + budget["collective-permute bytes"]


# Parameters in 32 parts and copies of them, nothing over `tensor`.
SPLIT = [case for case in FULL if re.search(r"_\d+b[:#]", case) and "mesh.tensor" not in FULL[case][0]]


@pytest.mark.parametrize("case", SPLIT)
def test_matrices_are_gathered_and_scattered_and_not_summed_whole(case):
    """In the budgets as they are committed: f32 parameters are as many bytes as they are twice in bf16."""
    budget = json.loads(GOLDEN.read_text())[case]
    parameters = 32 * budget["params"]
    assert 0.8 * parameters <= budget["all-gather bytes"] <= parameters
    assert 0.8 * parameters <= scattered(budget) <= 1.1 * parameters
    # Copies of each part; and one matrix, of the vocabulary, where tokens are many or the compiler does not scatter it.
    assert budget["all-reduce bytes"] <= 0.13 * parameters


def test_the_docs_say_the_same():
    page = (pathlib.Path(__file__).parents[1] / "docs" / "sharding.md").read_text()
    budgets = json.loads(GOLDEN.read_text())
    rows = re.findall(r"^\| `(\w+)`(?: stage `(\w+)`)? \| (v\w+:[\dx]+) \| ([\d. |]+) \|$", page, re.MULTILINE)
    assert len(rows) == 10
    for recipe, stage, topology, figures in rows:
        b = budgets[f"{recipe}{'#' * bool(stage)}{stage}:{topology}"]
        wanted = [b["params"] + b["opt"], b["temporaries"], b["all-gather bytes"], scattered(b), b["all-reduce bytes"]]
        assert [f"{x / 1e9:.1f}" for x in wanted] == figures.split(" | "), (recipe, topology)


def test_every_case_has_a_budget():
    assert set(json.loads(GOLDEN.read_text())) == {*QUICK, *FULL}


if __name__ == "__main__":
    budgets = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    for case in sys.argv[1:] or [*QUICK, *FULL]:
        budgets[case] = measured(case)
        GOLDEN.write_text(json.dumps(dict(sorted(budgets.items())), indent=1) + "\n")
        print(case, json.dumps(budgets[case]))
