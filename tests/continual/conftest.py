"""What the tests of methods share."""

from collections.abc import Callable

import lightning.pytorch as L
import pytest
from methods import make_method


@pytest.fixture
def method() -> Callable[..., L.LightningModule]:
    """Make a method by name, for images of 8 x 8 pixels; arguments override."""
    return make_method
