"""Warnings and notes: each is kept whole, and told on the terminal within ten lines; no note hides a warning."""

import csv
import errno
import logging
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import small_recipe
from glimpseg.data import notices
from glimpseg.data.notices import (
    Notices,
    StudyNotices,
    collected,
    collected_warnings,
    note,
    table_of,
    warn,
    write_table,
)
from glimpseg.errors import OutputError
from glimpseg.training import dataset


@pytest.fixture
def lines(caplog):
    """The lines that `--quiet` would leave out and those that it would not, as (level, text)."""
    caplog.set_level(logging.INFO, "glimpseg")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


def test_without_a_study_a_warning_is_logged_each_time_and_collected_once(lines):
    with collected_warnings() as found:
        for text in ("one", "two", "one"):
            warn(text)
    warn("later")
    note("said")
    assert found == ["one", "two"]
    assert lines() == [*(("WARNING", text) for text in ("one", "two", "one", "later")), ("INFO", "said")]


def test_every_list_around_collects():
    with collected() as outer:
        with collected() as inner:
            warn("inside")
            note("done inside")
        warn("outside")
    assert (outer.warnings, outer.notes) == (["inside", "outside"], ["done inside"])
    assert (inner.warnings, inner.notes) == (["inside"], ["done inside"])


def test_a_study_inside_another_keeps_its_notices_to_itself():
    tree, study = StudyNotices(), StudyNotices()
    with tree.open(), study.open():
        warn("of the study")
    assert (tree.warnings, study.warnings) == ([], ["of the study"])


def test_other_threads_do_not_see_the_list():
    with collected() as found:
        thread = threading.Thread(target=warn, args=("elsewhere",))
        thread.start()
        thread.join()
    assert found.warnings == []


def test_a_warning_is_told_at_once_and_notes_after_the_warnings_of_their_stage(lines):
    study = StudyNotices(name="S1")
    with study.telling():
        note("was registered")
        warn("looks odd")
        assert lines() == [("WARNING", "S1: looks odd")]
    assert lines() == [("WARNING", "S1: looks odd"), ("INFO", "S1: was registered")]


def test_a_text_is_told_once_and_a_name_is_not_doubled(lines):
    study = StudyNotices(name="S1")
    with study.telling():
        for text in ("S1: T1 is odd.", "S1: T1 is odd.", "It is odd."):
            warn(text)
        note("It is odd.")
    assert [text for _, text in lines()] == ["S1: T1 is odd.", "S1: It is odd."]
    assert (study.warnings, study.notes) == (["S1: T1 is odd.", "It is odd."], [])


def test_what_fails_is_told_nevertheless(lines):
    study = StudyNotices(name="S1")
    with pytest.raises(ZeroDivisionError), study.telling():
        note("was moved")
        raise ZeroDivisionError
    assert lines() == [("INFO", "S1: was moved")]


def test_the_eleventh_is_counted_with_the_place_of_all(lines):
    study = StudyNotices(where="run.json has all of them")
    with study.telling():
        for number in range(17):
            note(f"note {number}")
    told = [text for _, text in lines()]
    assert told == [*(f"note {number}" for number in range(10)), "... and 7 more: run.json has all of them."]
    assert len(study.notes) == 17


def test_what_is_left_out_is_shown_by_debug(caplog):
    caplog.set_level(logging.DEBUG, "glimpseg")
    with StudyNotices().telling():
        for number in range(12):
            note(f"note {number}")
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG] == [
        "note 10", "note 11",
    ]  # fmt: skip
    assert "... and 2 more: --debug shows all of them." in caplog.messages


def test_a_hidden_warning_is_counted_on_a_quiet_terminal(caplog):
    caplog.set_level(logging.WARNING, "glimpseg")
    with StudyNotices().telling():
        for number in range(11):
            warn(f"warning {number}")
    assert caplog.messages[-1] == "... and 1 more: --debug shows all of them."


STAGE = st.lists(st.tuples(st.sampled_from(["warning", "note"]), st.integers(0, 30)), max_size=25)


@given(early=STAGE, late=STAGE)
def test_at_most_ten_lines_and_no_warning_behind_a_note(early, late):
    """At most ten lines for a study; the rest is counted; early notes leave five lines for later warnings."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append((record.levelno, record.getMessage()))
    log = logging.getLogger(notices.__name__)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        study = StudyNotices(where="run.json has all of them")
        with study.telling():
            for kind, number in early:
                (warn if kind == "warning" else note)(f"text {number}")
            first_warnings = list(study.warnings)
            study.tell()
            first = list(lines)
            for kind, number in late:
                (warn if kind == "warning" else note)(f"text {number}")
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
    shown = [text for _, text in lines if text.startswith("text")]
    counts = [text for _, text in lines if text.startswith("...")]
    every = [*study.warnings, *study.notes]
    # Each text is in one list, once, whatever was told.
    assert sorted(every) == sorted({f"text {number}" for _, number in [*early, *late]})
    assert len(shown) == len(set(shown)) <= 10
    assert len(shown) == min(10, len(every))
    assert counts == ([f"... and {len(every) - 10} more: run.json has all of them."] if len(every) > 10 else [])
    # Before the network: all warnings that fit, and then notes, which leave five lines.
    assert [text for level, text in first if level == logging.WARNING] == first_warnings[:10]
    assert len(first) <= max(5, min(10, len(first_warnings)))
    # A warning without a line stands behind ten others, or behind at least five later ones.
    hidden = [text for text in study.warnings if text not in shown]
    later_shown = [text for text in shown if text in study.warnings and text not in first_warnings]
    assert not hidden or len(first_warnings) >= 10 or len(later_shown) >= 5 or not set(shown) & set(study.notes)


def test_what_the_tree_was_told_of_is_kept_and_not_told_again(lines):
    study = StudyNotices(name="S1")
    with study.telling():
        study.add_known("note", "adc.nii.gz is not used: diffusion imaging.")
    assert lines() == []
    assert study.as_tree() == {"warnings": [], "notes": ["adc.nii.gz is not used: diffusion imaging."]}


def test_notices_that_come_after_the_end_are_told_and_counted_again(lines):
    study = StudyNotices(where="run.json has all of them")
    for number in range(11):
        study.add("note", f"note {number}")
    study.finish()
    study.finish()
    study.add("warning", "no SEG was written")
    study.finish()
    assert [text for _, text in lines()][10:] == [
        "... and 1 more: run.json has all of them.", "... and 2 more: run.json has all of them.",
    ]  # fmt: skip


def test_words_that_name_a_patient_are_replaced_everywhere(lines):
    study = StudyNotices(name="study-00001", hidden={"Mayer": "study-00001", "Mayer_t1": "an image"})
    with study.telling(), collected() as found:
        warn("Mayer: T1 is odd; see /data/Mayer/scan.nii and Mayers.")
        note("Mayer_t1 is not used.")
    assert found.warnings == study.warnings == ["study-00001: T1 is odd; see scan.nii and Mayers."]
    assert [text for _, text in lines()] == [*study.warnings, "study-00001: an image is not used."]


def test_a_generator_gives_its_notices_and_not_those_of_its_caller():
    def made():
        warn("while making")
        yield 1

    study = StudyNotices()
    with collected() as outside:
        for _ in study.during(made()):
            warn("while using")
    assert (study.warnings, outside.warnings) == (["while making"], ["while using"])


def test_the_table_has_a_row_for_each(tmp_path):
    said = [("", Notices(['two\nlines, and "quotes"'], [])), ("S\udce9", Notices([], ["was moved"]))]
    write_table(tmp_path / "notes.csv", said)
    with (tmp_path / "notes.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["study", "kind", "text"], ["", "warning", 'two\nlines, and "quotes"'], ["S?", "note", "was moved"],
        ]  # fmt: skip
    write_table(tmp_path / "notes.csv", [("S1", Notices())])
    assert not (tmp_path / "notes.csv").exists()
    assert table_of([]) == ""


def read_only(*_, **__):
    """What a read-only disk does, even for a file that is not there."""
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_table_that_is_there_already_and_none_where_none_is_write_nothing(tmp_path, monkeypatch):
    said = [("S1", Notices(["noisy"], []))]
    write_table(tmp_path / "notes.csv", said)
    monkeypatch.setattr(notices, "write_text", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    write_table(tmp_path / "notes.csv", said)
    write_table(tmp_path / "other.csv", [("S1", Notices())])
    with pytest.raises(OutputError, match=r"notes\.csv could not be written \(Read-only file system\)"):
        write_table(tmp_path / "notes.csv", [("S1", Notices())])


def test_a_read_only_cache_is_used_with_another_table_and_a_full_disk_is_not(tmp_path, monkeypatch, caplog):
    for number, goes_on in ((errno.EROFS, True), (errno.EACCES, True), (errno.ENOSPC, False)):

        def refuse(path, said, number=number):
            raise OutputError(number, f"{path} could not be written")

        monkeypatch.setattr(dataset, "write_table", refuse)
        caplog.clear()
        if goes_on:
            assert dataset.prepare_studies([], small_recipe("unet"), tmp_path) == []
            assert caplog.messages == [
                "The cache is read-only, so its notes.csv stays as it is, and may be of other studies."
            ]
        else:
            with pytest.raises(OutputError):
                dataset.prepare_studies([], small_recipe("unet"), tmp_path)
