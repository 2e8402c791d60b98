"""Many small jobs over the cores, in order and with bounded memory; and the progress bar that goes with them.

Threads, not processes: Pillow lets go of the interpreter lock while it decodes, resizes and encodes.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

Job = TypeVar("Job")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]  # (done, total)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
    """`map` over a thread for each core. At most four results a core wait to be taken; an error stops the rest."""
    threads = available_cores()
    pool = ThreadPoolExecutor(threads)
    pending = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(function, job))
            if len(pending) >= 4 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class progress_bar:
    """A tqdm bar as a `Progress` callback: `with progress_bar("Decoding") as progress: ...`. Silent off a terminal."""

    def __init__(self, label: str, unit: str = "img"):
        self._bar = tqdm(desc=label, unit=unit, total=0, disable=None, leave=False)

    def __call__(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def note(self, text: str) -> None:
        """What stands behind the bar from now on."""
        self._bar.set_postfix_str(text, refresh=False)

    def __enter__(self) -> "progress_bar":
        return self

    def __exit__(self, *exc_info) -> None:
        self._bar.close()
