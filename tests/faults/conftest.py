"""Jobs of several processes, none of which outlives its test."""

from tests.multi.conftest import launch  # noqa: F401
