"""The export that tests share."""

from __future__ import annotations

import pytest

from tests.predict.export.made import Made, make


@pytest.fixture(scope="session")
def made() -> Made:
    """See `Made`."""
    return make()
