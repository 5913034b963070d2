import pytest

from ..nn.random_parameters import random_parameters


@pytest.fixture(scope="session")
def parameters():
    """A function from a model to random parameters."""
    return random_parameters
