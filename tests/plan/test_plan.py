"""`--plan` from the command line: what it prints and writes, and what it says of mistakes."""

import dataclasses
import json
import re

import pytest

from tests.plan.test_estimate import small
from vlm_jax import config as configs
from vlm_jax import main as program
from vlm_jax import plan
from vlm_jax.mesh import Layout
from vlm_jax.plan import estimate, fit, subject
from vlm_jax.plan.compile import Compiled
from vlm_jax.plan.estimate import Estimate
from vlm_jax.plan.result import result
from vlm_jax.plan.table import table
from vlm_jax.plan.topologies import parse

KEYS = {"format", "fits", "hbm_bytes", "flops", "floor_ms", "estimates"}
TIMED = {"compute_ms", "xla_ms", "pallas_ms", "network_ms", "bound", "collectives", "examples_per_s", "chip_hours"}
PARTS = {"params", "opt", "state", "batch", "temporaries", "aliased", "limit"}


def main(capsys, *arguments) -> tuple[int, str, str]:
    code = program.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_it_needs_no_accelerator_no_data_and_no_tokenizer(tmp_path):
    config = small(**{"task.model.image.depth": 1, "task.model.text.depth": 1})
    lines = []
    assert plan.plan(config, "cpu:2", tmp_path, say=lines.append) == 0
    found = json.loads((tmp_path / "plan.json").read_text())
    assert KEYS | TIMED <= set(found) and PARTS <= set(found["hbm_bytes"])
    assert found["fits"] and found["estimates"] is True
    assert found["collectives"]["all-reduce"]["count"] >= 1
    assert found["hbm_bytes"]["aliased"] >= found["hbm_bytes"]["params"] + found["hbm_bytes"]["opt"]
    assert found["examples_per_s"] is None  # nothing is known of a CPU's speed
    assert found["flops"]["example"] == found["flops"]["step"] / config.batch_size
    assert "estimates of the compiler" in lines[-1]


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("--config=siglip_tiny", "--plan=v5e:5x5"), "valid choices: 1x1, 2x2"),
        (("--config=siglip_tiny", "--plan=v5f:4x4"), "did you mean 'v5"),
        (("--config=siglip_tiny", "--plan=cpu:4", "--config.mesh.fsdp=3"), "to divisors: 1, 2, 4"),
        (("--config=siglip_tiny", "--plan=cpu:4", "--config.mesh.data=2"), "does not make the 4 device(s) of cpu:4"),
        (("--config=siglip_tiny", "--plan=cpu:4", "--config.batch_size=30"), "the nearest that are: 28 or 32"),
        (("--plan=v5e:4x4",), "--config=NAME is missing"),
    ],
)
def test_mistakes_are_one_line_with_what_is_right(capsys, tmp_path, arguments, says):
    code, _, err = main(capsys, *arguments, f"--workdir={tmp_path / 'run'}")
    assert code == 2
    assert says in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_help_needs_no_config(capsys):
    code, out, _ = main(capsys, "--plan=help")
    assert code == 0 and "v5p" in out


# Numbers, from an estimate that is made up


def made_up(**values) -> Estimate:
    base = {"arguments": 2e9, "outputs": 1e9, "aliased": 1e9, "temporaries": 8e9, "code": 0.0, "cycles": 150e6}
    base |= {"traffic": 8.19e9, "model_flops": 0.05 * 197e12 * 256, "params": 1e9, "opt": 1e9, "unknown_loops": 0.0}
    base |= {"all-reduce/sync/count": 2.0, "all-reduce/sync/bytes": 1e9, "all-reduce/sync/seconds": 0.010}
    base |= {"all-gather/async/count": 3.0, "all-gather/async/bytes": 1e9, "all-gather/async/seconds": 0.020}
    compiled = Compiled("", 10 * 10**9, 16 * 10**9, base | values, {}, 0.0, False, {})
    return Estimate(compiled, "compiled whole", False, False)


def planned(**values):
    experiment = subject.experiment_of(small(batch_size=32768, total_epochs=None, total_steps=1000))
    return result(made_up(**values), experiment, parse("v5e:16x16"), knows_total=True)


def test_of_packed_rows_images_are_counted():
    """12 rows of navit_tiny hold 60 images."""
    experiment = subject.experiment_of(configs.load("navit_tiny"))
    found = result(made_up(), experiment, parse("v5e:16x16"), knows_total=True)
    assert found["batch_size"] == 12
    assert found["examples_per_s"] == pytest.approx(60 / 0.110)
    assert found["flops"]["example"] == pytest.approx(found["flops"]["step"] / 60)


def test_epochs_of_a_mixture_whose_part_has_the_transform_of_all():
    config = small(total_examples=None, total_epochs=2)
    part = configs.bind("data.mixture.Part", source=config.data.source, image=configs.late("image"))
    length = config.data.source.size
    config.data.source = configs.bind("data.mixture.Mixture", parts={"only": part})
    assert subject.experiment_of(config).data.source.length == length


def test_times_add_up():
    """150M cycles at 1.5 GHz are 100 ms; 20 ms of messages run beside them, 10 ms are waited for."""
    found = planned()
    assert found["compute_ms"] == pytest.approx(100)
    assert found["floor_ms"] == pytest.approx(50)
    assert (found["network_ms"], found["network_waited_ms"]) == (pytest.approx(30), pytest.approx(10))
    assert found["step_ms"] == pytest.approx(110)
    assert found["hbm_ms"] == pytest.approx(10)
    assert found["bound"] == "compute"
    assert found["examples_per_s"] == pytest.approx(32768 / 0.110)
    assert found["mfu"] == pytest.approx(50 / 110)
    assert found["hours"] == pytest.approx(1000 * 0.110 / 3600)
    assert found["chip_hours"] == pytest.approx(256 * found["hours"])
    assert found["collectives"]["all-gather"] == {
        "count": 3,
        "bytes": 10**9,
        "asynchronous": 3,
        "ms": pytest.approx(20),
    }


def test_the_longest_binds():
    assert planned(**{"traffic": 819e9})["bound"] == "HBM"
    assert planned(**{"all-gather/async/seconds": 1.0})["bound"] == "network"


def test_the_table_says_it():
    text = table(planned())
    assert re.search(r"fits +yes: 9.31 GiB of 14.90 GiB", text)
    assert "all-gather x 3: 0.93 GiB, all asynchronous, 20.0 ms" in text
    assert "all-reduce x 2: 0.93 GiB, 0 asynchronous" in text
    assert "MFU at most 45%" in text and "bound by compute" in text
    assert "nothing ran" in text


# What would fit


class Fake:
    """A compiler whose programs need 10 bytes for the state and `rows` for the activations of a microbatch."""

    def __init__(self, experiment, rows: float, limit: int = 100):
        self.experiment, self.rows, self.limit, self.asked = experiment, rows, limit, []

    def __call__(self, change=subject.Change(), *, coarse=False, whole=False) -> Estimate:
        self.asked.append(change)
        kept = {"attention": 0.8, "block": 0.25}.get(change.remat, 1.0)
        needed = int(10 + self.rows * kept / (change.microbatches or 1))
        error = "out of memory" if needed > self.limit else ""
        return Estimate(Compiled(error, needed, self.limit, {"params": 10.0}, {}, 0.0, False, {}), "", False, coarse)


@pytest.mark.parametrize(
    "rows, remat, microbatches",
    [(110, "attention", None), (300, "block", None), (2000, None, 32), (1200, None, 16)],
)
def test_the_first_that_fits_is_the_one_with_the_least_work(rows, remat, microbatches):
    experiment = subject.experiment_of(small(batch_size=8192, total_epochs=None, total_steps=1000))
    compiler = Fake(experiment, rows)
    ways = fit.search(compiler, experiment, parse("v5e:4x4"), compiler(), lambda line: None)
    assert ways[0].change == subject.Change(remat=remat, microbatches=microbatches)
    assert ways[0].estimate.fits


@pytest.mark.parametrize(
    ("machine", "params", "mesh", "ways"),
    [
        ("v5e:4x4", 60.0, Layout(), 16),
        ("v5e:16x16", 60.0, Layout(), 32),
        ("v5e:16x16", 1000.0, Layout(), 256),
        ("v5e:16x16", 30.0, Layout(data=-1, fsdp=-1), 256),
        ("v5e:16x16", 30.0, Layout(data=1, fsdp=-1), None),
        ("4*v5e:8x8", 60.0, Layout(tensor=8), 8),
    ],
)
def test_the_state_is_split_where_it_is_the_most(machine, params, mesh, ways):
    experiment = subject.experiment_of(small(batch_size=8192, total_epochs=None, total_steps=1000))
    experiment = dataclasses.replace(experiment, mesh=mesh)
    first = Fake(experiment, 110)()
    first.compiled.values["params"] = params
    found = fit.search(Fake(experiment, 80), experiment, parse(machine), first, lambda line: None)
    assert found[0].change.fsdp == ways


def test_microbatches_divide_the_batch():
    experiment = subject.experiment_of(small(batch_size=1024, total_epochs=None, total_steps=1000))
    assert fit.allowed(experiment, parse("v5e:4x4"), 8)
    assert not fit.allowed(experiment, parse("v5e:4x4"), 16)  # 4 rows a device
    assert not fit.allowed(experiment, parse("v5e:4x4"), 3)


def test_where_nothing_fits_it_says_so(monkeypatch, tmp_path):
    refused = Compiled("no room", 200, 100, {"params": 1.0}, {}, 0.0, False, {})
    monkeypatch.setattr(
        estimate.Compiler,
        "__call__",
        lambda *a, coarse=False, whole=False, **k: Estimate(refused, "compiled whole", False, coarse),
    )
    lines = []
    assert plan.plan(small(), "cpu:2", tmp_path, say=lines.append) == 1
    assert "NO: " in lines[-1] and "nothing that was tried fits" in lines[-1] and "no room" in lines[-1]
    assert json.loads((tmp_path / "plan.json").read_text())["fits"] is False
