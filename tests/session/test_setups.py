"""The machines of trials that run out of band."""

from __future__ import annotations

import os

from harness.session.setups import roomy_shape


def test_out_of_band_trials_leave_the_host_memory() -> None:
    """Nothing slows them down, but a workload that eats all memory is stopped long before the host is."""
    shape = roomy_shape()
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert shape.memory_bytes == physical // 2
    assert (shape.baseline_cores, shape.network, shape.disk, shape.label) == (None, None, None, "unlimited")
