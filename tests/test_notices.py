"""Warnings about a study are logged, and collected by whoever asks for them in the same thread."""

import threading

from glimpseg.data.notices import collected_warnings, warn


def test_a_warning_is_logged_each_time_and_collected_once(caplog):
    with collected_warnings() as found:
        for text in ("one", "two", "one"):
            warn(text)
    warn("later")
    assert found == ["one", "two"]
    assert [record.getMessage() for record in caplog.records] == ["one", "two", "one", "later"]


def test_the_innermost_list_collects():
    with collected_warnings() as outer:
        with collected_warnings() as inner:
            warn("inside")
        warn("outside")
    assert (outer, inner) == (["outside"], ["inside"])


def test_other_threads_do_not_see_the_list():
    with collected_warnings() as found:
        thread = threading.Thread(target=warn, args=("elsewhere",))
        thread.start()
        thread.join()
    assert found == []
