"""Fixtures that every test file shares."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real scans, named by the environment variable ``LDCT_REAL_DATA``; the test skips without it."""
    folder = os.environ.get("LDCT_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("LDCT_REAL_DATA does not name a folder of real scans")
    return Path(folder)


@pytest.fixture
def one_thread():
    """Bit equality needs one order of summation, so one number of threads, here as in the subprocesses."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def interruptible():
    """Python's own answer to Ctrl-C: a shell starts a background job with the interrupt ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
