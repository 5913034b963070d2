"""`--explain_sharding`, here and for machines that are not here."""

import jax
import pytest

from tests.helpers import small_config
from vlm_jax import config as configs
from vlm_jax.errors import UserError
from vlm_jax.explain import explain_sharding
from vlm_jax.main import main
from vlm_jax.overrides import override_all


@pytest.fixture(autouse=True)
def started():
    """The devices of this process are there before a plan could set their number."""
    assert len(jax.devices()) == 8


def test_a_line_a_parameter_and_the_sum():
    *parameters, total = explain_sharding(small_config(mesh__fsdp="2", mesh__min_size="64"), "cpu:4")
    by_name = {line.split()[0]: line for line in parameters}
    line = by_name["image/blocks/00/mlp/fc1/kernel"]
    assert "(16, 32)" in line and "fsdp, -" in line and line.endswith("axes embed,mlp")
    assert "below min_size=64" in by_name["image/blocks/00/mlp/fc1/bias"]
    sizes = sum(float(line.split(" MiB")[0].split()[-1]) for line in parameters)
    assert total.startswith("mesh data=2 x fsdp=2 x tensor=1: ")
    assert float(total.split(": ")[1].split()[0]) == pytest.approx(sizes, abs=0.1)


def test_it_warns_of_what_is_large_and_whole():
    config = configs.load("siglip_b16")
    override_all(config, [(("mesh.fsdp", "4")), ("mesh.rules", "(('text/embed/token', 'replicate'),)")])
    (warning,) = [line for line in explain_sharding(config, "cpu:4") if line.startswith("warning: ")]
    assert "text/embed/token (32000, 768) is whole on every device (94 MiB)" in warning


def test_it_needs_no_data_and_no_tokenizer(capsys):
    assert main(["--config=siglip_b16:full", "--explain_sharding"]) == 0
    assert "text/embed/token" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, says", [({"mesh__fsdp": "3"}, "does not make the 8 device"), ({}, "unknown chip 'v9'")]
)
def test_mistakes_are_one_line(change, says):
    with pytest.raises(UserError, match=says):
        explain_sharding(small_config(**change), None if change else "v9:3")
