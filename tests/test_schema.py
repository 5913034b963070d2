"""Values against annotations."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax import schema
from vlm_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("1e4", int, 10_000),
        ("1_000", int, 1000),
        ("3", float, 3.0),
        ("1e-3", float, 1e-3),
        ("true", bool, True),
        ("False", bool, False),
        ("None", int | None, None),
        ("none", str | None, None),
        ("abc", str, "abc"),
        ("'quoted'", str, "quoted"),
        ("12", str, "12"),
        ("1,2", tuple[int, ...], (1, 2)),
        ("[1, 2]", tuple[int, ...], (1, 2)),
        ("(0.5,1)", tuple[float, float], (0.5, 1.0)),
        ("a,b c", tuple[str, ...], ("a", "b c")),
        ("[]", tuple[int, ...], ()),
        ("x", Literal["x", "y"], "x"),
        ("3", float | int | None, 3),
        ("(('logit.*', 20),)", tuple[tuple[str, float], ...], (("logit.*", 20.0),)),
    ],
)
def test_parse(text, annotation, value):
    parsed = schema.parse(text, annotation, "key")
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "annotation", "says"),
    [
        ("1.5", int, "takes int"),
        ("x", float, "takes float"),
        ("1", bool, "takes bool"),
        ("1,2,3", tuple[int, int], r"takes a tuple \(int, int\)"),
        ("sigmod", Literal["sigmoid", "infonce"], "did you mean 'sigmoid'"),
        ("True", int, "takes int"),
    ],
)
def test_wrong_types_say_what_is_taken(text, annotation, says):
    with pytest.raises(UserError, match=says):
        schema.parse(text, annotation, "config.key")


@given(st.integers(-(2**53), 2**53))
def test_integers_survive_as_text(value):
    assert schema.parse(str(value), int, "key") == value


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_tuples_of_floats_survive_as_text(values):
    assert schema.parse(repr(values), tuple[float, ...], "key") == tuple(values)


def test_booleans_are_not_numbers():
    with pytest.raises(schema.Mismatch):
        schema.coerce(True, float)
