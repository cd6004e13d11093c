"""Work that is done ahead: order, depth, errors, and what becomes of results that nobody takes."""

import threading

import pytest

from glimpseg.runtime.pipeline import ahead


def test_results_come_in_the_order_of_their_items_though_later_ones_end_first():
    second_done = threading.Event()

    def work(number):
        if number == 0:
            assert second_done.wait(10)
        else:
            second_done.set()
        return number * number

    assert list(ahead([0, 1, 2], work, 2, threads=2)) == [0, 1, 4]


def test_no_more_items_are_taken_than_the_depth_allows():
    taken = []

    def items():
        for number in range(10):
            taken.append(number)
            yield number

    results = ahead(items(), lambda number: number, 3)
    assert next(results) == 0
    assert taken == [0, 1, 2]
    assert next(results) == 1
    assert taken == [0, 1, 2, 3]
    results.close()


def test_work_is_done_before_its_result_is_asked_for():
    done = threading.Event()
    results = ahead([0, 1], lambda number: done.set() if number else None, 2)
    next(results)
    assert done.wait(10)


def test_an_error_is_raised_at_its_item_and_later_results_are_discarded():
    discarded = []

    def work(number):
        if number == 1:
            raise ValueError("broken")
        return number

    results = ahead([0, 1, 2], work, 3, discard=discarded.append)
    assert next(results) == 0
    with pytest.raises(ValueError, match="broken"):
        next(results)
    assert discarded in ([2], [])  # [] if its turn had not come


def test_a_caller_that_stops_early_leaves_no_result_unaccounted():
    started, discarded = [], []

    def work(number):
        started.append(number)
        return number

    results = ahead(range(100), work, 4, discard=discarded.append)
    assert next(results) == 0
    results.close()
    assert sorted([0, *discarded]) == sorted(started)


def test_of_no_item_there_is_no_result():
    assert list(ahead([], str, 2)) == []


def test_items_are_taken_in_the_callers_thread():
    seen = []

    def items():
        seen.append(threading.current_thread())
        yield 1

    list(ahead(items(), lambda number: seen.append(threading.current_thread()), 1))
    assert seen[0] is threading.current_thread()
    assert seen[1] is not threading.current_thread()


def test_items_that_were_taken_are_finished_on_request_when_a_later_one_fails():
    finished = []

    def items():
        yield from range(3)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(ahead(items(), finished.append, 4, finish=True))
    assert finished == [0, 1, 2]
