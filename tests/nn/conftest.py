"""One thread for every test here."""

import pytest


@pytest.fixture(autouse=True)
def one_thread(one_thread_only):
    pass
