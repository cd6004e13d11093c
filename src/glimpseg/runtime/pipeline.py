"""A pipeline of threads: work that is started before its result is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    depth: int,
    *,
    threads: int = 1,
    finish: bool = False,
    discard: Callable[[Result], object] = lambda result: None,
) -> Generator[Result, None, None]:
    """Yield `work(item)` for each item, in order, computed by threads ahead of the caller.

    Items are taken in the caller's thread, one more each time a result is asked for.

    Args:
        items: What to work on; may be a generator, whose own work then happens in the caller's thread.
        work: Called in a thread. Its exception is raised when its result is asked for, and ends the pipeline.
        depth: Results in flight or waiting, at most, besides the one that the caller holds; at least 1.
        threads: How many items are worked on at the same time.
        finish: When the caller stops or an item fails, still work on the items that were taken, as writing needs it.
            Otherwise those that have not begun are dropped.
        discard: Called with each result that is never handed over, because the caller stopped or an item failed.

    Yields:
        The results, in the order of the items.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(max(threads, 1), thread_name_prefix="ahead")
    source = iter(items)
    try:
        ended = False
        while True:
            while not ended and len(waiting) < depth:
                try:
                    waiting.append(pool.submit(work, next(source)))
                except StopIteration:
                    ended = True
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for future in () if finish else waiting:
            future.cancel()
        pool.shutdown(wait=True)
        for future in waiting:
            if not future.cancelled() and future.exception() is None:
                discard(future.result())
