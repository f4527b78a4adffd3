"""The count is of the cores that this process may use."""

import os
import sys

import pytest

from deitctl.cores import count_cores


@pytest.mark.skipif(sys.platform != "linux", reason="processes are bound to cores there")
def test_a_process_bound_to_one_core_has_one():
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert count_cores() == 1
    finally:
        os.sched_setaffinity(0, mine)
    assert count_cores() == len(mine)
