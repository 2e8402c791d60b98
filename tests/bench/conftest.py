"""One thread: the tensors are tiny."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread(one_thread_only):
    return
