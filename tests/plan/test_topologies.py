"""Names of machines."""

import pytest

from vlm_jax.errors import UserError
from vlm_jax.plan import topologies
from vlm_jax.plan.topologies import CHIPS, parse


@pytest.mark.parametrize(
    "name, size, platform",
    [
        ("v5e:16x16", 256, "tpu"),
        ("v5e:1x1", 1, "tpu"),
        ("2*v6e:16x16", 512, "tpu"),
        ("v4:2x2x1", 4, "tpu"),
        ("v5p:16x20x28", 8960, "tpu"),
        ("h200:8", 8, "cuda"),
        ("a100:16", 16, "cuda"),
        ("cpu:3", 3, "cpu"),
    ],
)
def test_names(name, size, platform):
    topology = parse(name)
    assert (topology.size, topology.platform, topology.name) == (size, platform, name)


@pytest.mark.parametrize(
    "name, says",
    [
        ("v5e", "for example v5e:16x16"),
        ("16x16", "for example v5e:16x16"),
        ("v5:2x2", "did you mean 'v5"),
        ("v9:2x2", "valid choices: a100, cpu,"),
        ("v5e:5x5", "did you mean 4x8?"),
        ("v5e:16x32", "did you mean 16x16?"),
        ("v5e:4x4x4", "valid choices: 1x1, 2x2,"),
        ("v4:3x3x3", "valid choices: 1x1x1, 2x2x1,"),
        ("v5p:16x20x32", "in multiples of 4 to 16x20x28"),
        ("v5e:0x4", "'0x4' is no shape"),
        ("v5e:4x", "'4x' is no shape"),
        ("cpu:2x2", "a number of devices"),
        ("h200:12", "in nodes of 8"),
        ("0*v5e:2x2", "is no shape"),
    ],
)
def test_wrong_names_say_what_is_right(name, says):
    with pytest.raises(UserError, match=f"--plan={name}".replace("*", r"\*")) as error:
        parse(name)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["v4", "v5e", "v5p"])
def test_known_clocks_follow_from_the_peak(name):
    """TensorCores x matrix units x 128 x 128 multiply-adds a cycle."""
    units = {"v4": 2 * 4, "v5e": 4, "v5p": 2 * 4}[name]
    peak = units * 128 * 128 * 2 * CHIPS[name].clock
    from vlm_jax.flops import peak_tflops

    assert CHIPS[name].clock_known
    assert peak == pytest.approx(1e12 * peak_tflops(CHIPS[name].kind), rel=0.01)


@pytest.mark.parametrize(
    "name, missing, command",
    [("v5e:2x2", "libtpu", "pip install 'jax[tpu]=="), ("h200:8", "jax-cuda12-plugin", "pip install 'jax[cuda12]==")],
)
def test_what_is_not_installed_comes_with_its_command(monkeypatch, name, missing, command):
    monkeypatch.setattr(topologies, "_installed", lambda distribution: False)
    with pytest.raises(UserError) as error:
        topologies.check_installed(parse(name))
    assert command in str(error.value) and "\n" not in str(error.value)


def test_help_lists_every_chip_and_shape():
    text = topologies.help_text()
    for name, chip in CHIPS.items():
        assert f"  {name} " in text
        assert all(shape in text for shape in chip.shapes)


@pytest.mark.parametrize("name, kind", [("v5e:2x4", "TPU v5 lite"), ("v5e:1x1", "TPU v5 lite")])
def test_devices_of_a_tpu(tpu, name, kind):
    devices = topologies.devices(parse(name))
    assert len(devices) == parse(name).size
    assert {d.device_kind for d in devices} == {kind}
