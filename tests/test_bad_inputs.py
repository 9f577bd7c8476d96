"""Every bad input of tests/bad_inputs ends as it should: it works, or it is refused with a clear message."""

import importlib
import sys

import pytest
import torch

from tests.bad_inputs import problems
from tests.bad_inputs.__main__ import AREAS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="each case is a fork with a limit of memory")


@pytest.mark.parametrize("area", AREAS)
def test_no_bad_input_ends_in_a_traceback_a_hang_or_a_silent_wrong_result(area):
    torch.set_num_threads(1)
    assert problems(importlib.import_module(f"tests.bad_inputs.{area}").cases()) == []
