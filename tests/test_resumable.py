"""Output folders that are opened, resumed, refused and replaced."""

import json
import shutil

import pytest
from filelock import FileLock

from glimpseg.errors import InputError, OutputError, UsageError
from glimpseg.runtime import resumable
from glimpseg.runtime.atomic import folder_lock
from glimpseg.runtime.resumable import Resumable, differences, discard_replaced, replaced, restore_replaced

BATCH = Resumable(noun="batch", file="batch.json", may_differ=("threads",), replaceable=True)
RUN = Resumable(noun="run", file="recipe.yaml", among_files=True)
SETTINGS = {"model": "box", "options": {"tta": 4}, "threads": 1}


@pytest.fixture
def begun(tmp_path):
    BATCH.open(tmp_path / "out", SETTINGS)
    return tmp_path / "out"


def test_a_new_folder_gets_its_settings(tmp_path):
    assert BATCH.open(tmp_path / "out", SETTINGS) is None
    assert json.loads((tmp_path / "out" / "batch.json").read_text()) == SETTINGS
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["batch.json"]


def test_settings_are_yaml_where_the_name_says_so(tmp_path):
    RUN.open(tmp_path / "out", SETTINGS)
    assert (tmp_path / "out" / "recipe.yaml").read_text().startswith("model: box\n")
    assert RUN.open(tmp_path / "out", SETTINGS, resume=True) == SETTINGS


def test_the_same_work_is_resumed(begun):
    assert BATCH.open(begun, SETTINGS, resume=True) == SETTINGS


def test_what_may_differ_is_no_reason_to_refuse(begun):
    kept = BATCH.open(begun, {**SETTINGS, "threads": 8}, resume=True)
    assert kept["threads"] == 1
    assert json.loads((begun / "batch.json").read_text()) == SETTINGS


def test_further_content_of_the_file_is_no_reason_to_refuse(begun):
    (begun / "batch.json").write_text(json.dumps({**SETTINGS, "finished": True}))
    assert BATCH.open(begun, SETTINGS, resume=True)["finished"]


def test_other_settings_are_refused_by_name(begun):
    with pytest.raises(UsageError, match=r"The batch in .*out was begun otherwise \(options.tta: 4, now 8\)"):
        BATCH.open(begun, {**SETTINGS, "options": {"tta": 8}}, resume=True)


def test_the_same_work_is_not_resumed_unasked(begun):
    with pytest.raises(UsageError, match=r"already holds a batch. Add --resume .* --overwrite to replace it"):
        BATCH.open(begun, SETTINGS)
    evaluation = Resumable(noun="evaluation", file="batch.json")
    with pytest.raises(
        UsageError, match=r"already holds an evaluation\. Add --resume to go on with it, or name another"
    ):
        evaluation.open(begun, SETTINGS)


def test_a_shard_joins_the_same_work_and_no_other(begun):
    assert BATCH.open(begun, SETTINGS, joins=True) == SETTINGS
    with pytest.raises(UsageError, match="begun otherwise"):
        BATCH.open(begun, {**SETTINGS, "model": "mine"}, joins=True)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "scan.nii").touch()
    for choice in ({}, {"resume": True}, {"joins": True}):
        with pytest.raises(UsageError, match="already holds files"):
            BATCH.open(tmp_path, SETTINGS, **choice)
    with pytest.raises(UsageError, match="replaces only a folder that glimpseg made"):
        BATCH.open(tmp_path, SETTINGS, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").touch()
    for kind in (BATCH, RUN):
        with pytest.raises(UsageError, match="is a file"):
            kind.open(tmp_path / "out", SETTINGS)


def test_a_work_may_begin_among_files_where_its_kind_allows_it(tmp_path):
    (tmp_path / "cache").mkdir()
    assert RUN.open(tmp_path, SETTINGS) is None


def test_another_process_that_writes_its_settings_at_this_moment_is_no_obstacle(tmp_path):
    (tmp_path / ".batch.json.tmp-1").touch()
    assert BATCH.open(tmp_path, SETTINGS) is None


def test_settings_that_the_caller_knows_take_the_place_of_the_file(begun):
    with pytest.raises(UsageError, match='model: "mine", now "box"'):
        BATCH.open(begun, SETTINGS, resume=True, kept={**SETTINGS, "model": "mine"})


def test_a_lost_settings_file_is_written_again(tmp_path):
    RUN.open(tmp_path, SETTINGS, resume=True, kept=SETTINGS)
    assert RUN.read(tmp_path) == SETTINGS


@pytest.mark.parametrize("content", [b"{", b"3", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_a_damaged_settings_file_is_named(begun, content):
    (begun / "batch.json").write_bytes(content)
    with pytest.raises(InputError, match=r"batch\.json is damaged"):
        BATCH.open(begun, SETTINGS, resume=True)


def test_what_is_overwritten_waits_aside_until_it_is_discarded_or_restored(begun):
    (begun / "result").write_text("old")
    assert BATCH.open(begun, {**SETTINGS, "model": "mine"}, overwrite=True) is None
    assert (replaced(begun) / "result").read_text() == "old"
    assert not (begun / "result").exists()
    restore_replaced(begun)
    assert (begun / "result").read_text() == "old"
    assert not replaced(begun).exists()
    BATCH.open(begun, SETTINGS, overwrite=True)
    discard_replaced(begun)
    assert not replaced(begun).exists()
    restore_replaced(begun)
    assert (begun / "batch.json").exists()


def test_replaced_work_is_restored_where_the_new_folder_is_gone(begun):
    BATCH.open(begun, SETTINGS, overwrite=True)
    shutil.rmtree(begun)
    restore_replaced(begun)
    assert (begun / "batch.json").exists()


def test_a_replacement_that_was_not_finished_does_not_cost_the_work_that_it_replaces(begun):
    (begun / "result").write_text("finished")
    BATCH.open(begun, SETTINGS, overwrite=True)  # and killed
    (begun / "result").write_text("half")
    BATCH.open(begun, SETTINGS, overwrite=True)
    assert not (begun / "result").exists()
    assert (replaced(begun) / "result").read_text() == "finished"


def test_a_kill_right_after_the_work_was_set_aside_loses_nothing(begun):
    (begun / "result").write_text("finished")
    begun.rename(replaced(begun))  # as far as the process came
    with pytest.raises(UsageError, match="already holds a batch"):
        BATCH.open(begun, SETTINGS)
    assert (begun / "result").read_text() == "finished"


def test_a_work_whose_replacement_cannot_begin_is_put_back(begun, monkeypatch):
    (begun / "result").write_text("finished")

    def refuse(path, text):
        raise OutputError(28, "full")

    monkeypatch.setattr(resumable, "write_text_once", refuse)
    with pytest.raises(OutputError):
        BATCH.open(begun, SETTINGS, overwrite=True)
    assert (begun / "result").read_text() == "finished"
    assert not replaced(begun).exists()


def test_resume_takes_precedence_over_overwrite(begun):
    assert BATCH.open(begun, SETTINGS, resume=True, overwrite=True) == SETTINGS
    assert not replaced(begun).exists()


def test_of_two_works_that_begin_at_once_the_settings_of_the_first_count(tmp_path, monkeypatch):
    read, looks = Resumable.read, []

    def late(self, folder):
        found = read(self, folder)
        if not looks:  # the other one writes its settings between our look and our writing
            looks.append(folder)
            BATCH.open(folder, {**SETTINGS, "model": "theirs"})
        return found

    monkeypatch.setattr(Resumable, "read", late)
    with pytest.raises(UsageError, match="was begun otherwise"):
        BATCH.open(tmp_path / "out", SETTINGS, joins=True)
    assert json.loads((tmp_path / "out" / "batch.json").read_text())["model"] == "theirs"


def test_a_shard_that_another_process_works_in_is_not_set_aside(begun):
    shards = Resumable(noun="batch", file="batch.json", replaceable=True, locks=(".shard-*/.lock",))
    with folder_lock(begun / ".shard-0-of-2"), pytest.raises(UsageError, match="Another process"):
        shards.open(begun, SETTINGS, overwrite=True)
    assert (begun / "batch.json").exists()
    assert shards.open(begun, SETTINGS, overwrite=True) is None


def test_what_another_process_works_in_is_not_set_aside(begun):
    with FileLock(begun / ".lock"), pytest.raises(UsageError, match="Another process"):
        BATCH.open(begun, SETTINGS, overwrite=True)


def test_differences_are_named_in_full_and_kept_short():
    old = {"a": 1, "b": {"c": [1, 2], "d": "x" * 99}, "gone": True}
    new = {"a": 1, "b": {"c": [1], "d": "y"}, "new": None, "more": 2}
    assert list(differences(old, new)) == [
        "b.c: [1, 2], now [1]",
        f'b.d: "{"x" * 56}..., now "y"',
        "gone: true, now null",
        "more: null, now 2",
    ]
