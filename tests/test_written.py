"""Files that a batch wrote, and that were damaged since: read back, or refused in one sentence that says what to do."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimpseg.batch import written
from glimpseg.batch.folder import pseudonyms_of, write_notes, write_statistics
from glimpseg.batch.review import write_review
from glimpseg.errors import InputError
from glimpseg.modality import Modality
from glimpseg.region import Region
from glimpseg.runtime.documents import DocumentError, field_of, texts_of
from glimpseg.runtime.json_lines import read_json_lines

RUN = {
    "sequences": {"used": ["t1c", "flair"], "absent": ["t1", "t2"]},
    "seconds": {"read": 1.5, "network": 2, "write": 0.25},
    "warnings": ["t1c: noisy."],
    "notes": [],
    "review": {
        "look": True,
        "score": 1.25,
        "findings": [{"code": "far_parts", "score": 1.25, "sentence": "7 ml lie far away"}],
    },
}
REGIONS = {"WT": {"title": "whole tumour", "volume_ml": 41.5, "lesions": 2, "estimated_dice": None}}


@pytest.fixture
def study(tmp_path):
    """Output folder of a study in the folder of a batch."""
    folder = tmp_path / "out" / "S1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(RUN))
    (folder / "statistics.json").write_text(json.dumps(REGIONS))
    return folder


def test_a_study_folder_is_read_back(study):
    found = written.read_study_folder(study)
    assert (found.name, found.used, found.seconds) == ("S1", Modality.T1C | Modality.FLAIR, 3.75)
    assert (found.look, found.score, found.findings[0].sentence) == (True, 1.25, "7 ml lie far away")
    assert (found.notices.warnings, found.notices.notes) == (["t1c: noisy."], [])
    assert found.volumes_ml == {Region.WT: 41.5}


def test_a_folder_of_an_older_version_has_no_review(study):
    (study / "run.json").write_text(json.dumps({name: RUN[name] for name in ("sequences", "seconds")}))
    found = written.read_study_folder(study)
    assert (found.look, found.score, found.findings, found.notices.warnings) == (None, 0.0, (), [])


SPOILED = (
    ("cut short", lambda data: data[: len(data) // 2], r"line 1 column \d+"),
    ("empty", lambda data: b"", "Expecting value"),
    ("zeros", lambda data: bytes(len(data)), "Expecting value"),
    ("Latin-1", lambda data: b'{"a": "\xe4"}', r"not in UTF-8 \(byte 7 is 0xe4\)"),
    ("a list", lambda data: b"[1, 2]", "should be a table"),
    ("a text", lambda data: b'"run"', "should be a table"),
    ("null", lambda data: b"null", "should be a table"),
    ("deep", lambda data: b"[" * 5000 + b"]" * 5000, "deep in each other"),
)


@pytest.mark.parametrize("name", ["run.json", "statistics.json"])
@pytest.mark.parametrize(("how", "spoil", "why"), SPOILED, ids=[row[0] for row in SPOILED])
def test_a_damaged_file_of_a_study_is_named_with_what_to_do(study, name, how, spoil, why):
    path = study / name
    path.write_bytes(spoil(path.read_bytes()))
    for write in (write_statistics, write_review, write_notes):
        with pytest.raises(InputError, match=why) as caught:
            write(study.parent)
        said = str(caught.value)
        assert said.startswith(f"{path} is damaged (")
        assert said.endswith(
            f"Move the folder {study} away and run again with --resume: the study is then segmented anew."
        )
        assert "\n" not in said


def test_a_missing_table_of_a_study_is_named(study):
    (study / "statistics.json").unlink()
    with pytest.raises(InputError, match=r"statistics\.json is damaged \(No such file or directory\)"):
        write_statistics(study.parent)


WRONG = (
    ({"sequences": None}, "'sequences' should be a table, not null"),
    ({"sequences": {"used": "t1c"}}, "'used' should be a list, not text"),
    ({"sequences": {"used": [1]}}, "'used' should hold text, not a number"),
    ({"sequences": {"used": []}}, "''"),
    ({"sequences": {"used": ["t9"]}}, "t9"),
    ({"seconds": {"read": "1"}}, "'read' should be a number, not text"),
    ({"seconds": {"read": True}}, "'read' should be a number, not true or false"),
    ({"warnings": "noisy"}, "'warnings' should be a list, not text"),
    ({"notes": [["a"]]}, "'notes' should hold text, not a list"),
    ({"review": []}, "'review' should be a table, not a list"),
    ({"review": {"look": "yes"}}, "'look' should be true or false, not text"),
    ({"review": {"look": True, "score": "high"}}, "'score' should be a number, not text"),
    ({"review": {"look": True, "findings": [{"code": "far_parts", "score": 1}]}}, "it lacks 'sentence'"),
    ({"review": {"look": True, "findings": ["far_parts"]}}, "should be a table with 'code', not text"),
)


@pytest.mark.parametrize(("change", "why"), WRONG)
def test_a_field_of_the_wrong_kind_is_named(study, change, why):
    (study / "run.json").write_text(json.dumps({**RUN, **change}))
    with pytest.raises(InputError) as caught:
        written.read_study_folder(study)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("regions", "why"),
    [
        ({"WT": 41.5}, "'WT' should be a table, not a number"),
        ({"WT": {"lesions": 2}}, "it lacks 'volume_ml'"),
        ({"WT": {"volume_ml": None}}, "'volume_ml' should be a number, not null"),
        ({"WT": {"volume_ml": 1, "agreement": "0.9"}}, "'agreement' should be a number, not text"),
        ({"XX": {"volume_ml": 1}}, "'XX' is no region"),
    ],
)
def test_numbers_of_a_region_of_the_wrong_kind_are_named(study, regions, why):
    (study / "statistics.json").write_text(json.dumps(regions))
    with pytest.raises(InputError) as caught:
        written.read_study_folder(study)
    assert why in str(caught.value)


trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*RUN, "used", "look", "x"]), inner),
    max_leaves=8,
)


@given(name=st.sampled_from(["run.json", "statistics.json"]), field=st.sampled_from([*RUN, "WT"]), tree=trees)
def test_whatever_a_field_holds_the_folder_is_read_or_refused(tmp_path_factory, name, field, tree):
    folder = tmp_path_factory.mktemp("batch") / "S1"
    folder.mkdir()
    contents = {"run.json": dict(RUN), "statistics.json": dict(REGIONS)}
    contents[name][field] = tree
    for file, content in contents.items():
        (folder / file).write_text(json.dumps(content))
    writers = (written.read_study_folder, write_statistics, write_review, write_notes)
    places = (folder, *[folder.parent] * 3)
    try:
        written.read_study_folder(folder)
    except InputError:
        for write, place in zip(writers, places, strict=True):
            with pytest.raises(InputError, match=f"{name} is damaged"):
                write(place)
    else:
        for write, place in zip(writers, places, strict=True):
            write(place)
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"failed": [{"study": "S1"', "line 1 column"),
        (b'{"failed": {"S1": "why"}}', "'failed' should be a list, not a table"),
        (b'{"failed": [{"study": "S1"}]}', "it lacks 'reason'"),
        (b'{"failed": ["S1"]}', "should be a table with 'study', not text"),
        (b'{"failed": "\xff"}', "not in UTF-8"),
        (b"[]", "should be a table with 'failed', not a list"),
    ],
)
def test_a_damaged_list_of_failures_is_named_with_what_to_do(tmp_path, text, why):
    path = tmp_path / "failures-0-of-2.json"
    path.write_bytes(text)
    with pytest.raises(InputError) as caught:
        written.read_failures(path)
    assert str(caught.value).startswith(f"{path} is damaged (")
    assert why in str(caught.value)
    assert str(caught.value).endswith("Delete it and run again with --resume.")


def test_damaged_notices_of_a_tree_are_named(tmp_path):
    (tmp_path / "unused.json").write_text('{"warnings": 3}')
    with pytest.raises(InputError, match=r"unused\.json is damaged \('warnings' should be a list, not a number\)"):
        write_notes(tmp_path)


@pytest.mark.parametrize("text", [b'{"key": "00', b'{"key": "zz"}', b'{"key": ""}', b'{"key": 5}', b"\xff", b"[]"])
def test_a_damaged_key_is_neither_used_nor_replaced(tmp_path, text):
    path = tmp_path / "out.key.json"
    path.write_bytes(text)
    with pytest.raises(InputError, match=r"out\.key\.json is damaged .* Put a copy of it back"):
        pseudonyms_of(tmp_path / "out", {"P1": "study-00001"})
    assert path.read_bytes() == text


def test_a_key_is_used_again(tmp_path):
    first = pseudonyms_of(tmp_path / "out", {"P1": "study-00001"})
    assert pseudonyms_of(tmp_path / "out", {"P1": "study-00001", "caf\udce9": "study-00002"}) == first
    assert pseudonyms_of(tmp_path / "out", {"P1": "study-00001"}) == first


def test_lines_of_a_log_that_are_damaged_are_left_out_with_a_warning(tmp_path, caplog):
    path = tmp_path / "batch.jsonl"
    path.write_bytes(b'{"study": "S1"}\n\xff\xfe\n[1]\n\0\0\0\n{"study": "S2"}\n{"stu')
    assert read_json_lines(path) == [{"study": "S1"}, {"study": "S2"}]
    assert [record.message for record in caplog.records] == ["batch.jsonl: 3 of 5 lines are damaged and were left out."]


def test_a_field_of_a_document_has_the_kind_that_was_asked_for():
    tree = {"a": 1, "b": None, "c": True}
    assert (field_of(tree, "a", float), field_of(tree, "b", str, "x"), field_of(tree, "d", list, [])) == (1, "x", [])
    for name, kind in (("a", bool), ("b", str), ("c", float), ("d", dict)):
        with pytest.raises(DocumentError):
            field_of(tree, name, kind)
    with pytest.raises(DocumentError, match="not a number"):
        texts_of({"e": ["x", 2]}, "e")
