"""The specification tests the plain code. The faster versions are compared with it in `tests/test_fast.py`."""

import pytest

from minflamingo import fast


@pytest.fixture(autouse=True)
def plain_code():
    with fast.disabled():
        yield
