"""JSON and YAML of anybody: plain values or one line that says why not, whatever the file holds."""

import json
import time

import hypothesis
import pytest
import yaml
from hypothesis import strategies

from glimpseg.errors import LONGEST, InputError, readable
from glimpseg.runtime import documents
from glimpseg.runtime.documents import DocumentError, parse_json, parse_yaml, read_json, read_yaml

PLAIN = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers(-(10**80), 10**80)
    | strategies.floats(allow_nan=False, allow_infinity=False)
    | strategies.text(strategies.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: (
        strategies.lists(inner, max_size=4) | strategies.dictionaries(strategies.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@hypothesis.given(PLAIN)
def test_plain_values_come_back_from_json(tree):
    hypothesis.assume("\\ud" not in json.dumps(tree))
    assert parse_json(json.dumps(tree)) == tree


@hypothesis.given(PLAIN)
def test_plain_values_come_back_from_yaml(tree):
    hypothesis.assume("\\ud" not in json.dumps(tree).lower())
    text = yaml.safe_dump(tree)
    assert parse_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', "'a' stands there twice"),
        ("[NaN]", "the number nan"),
        ("[1e999]", "the number inf"),
        ("[" * 100_000, "more than 64 deep"),
        ('{"a":' * 65 + "1" + "}" * 65, "more than 64 deep"),
        ("9" * 101, "a number of 101 digits"),
        ("9" * 5000, "a number of 5,000 digits"),
        ('"\\ud800"', "half of a character"),
        ('{"a": 1} {"b": 2}', "Extra data: line 1 column 10"),
        ("", "Expecting value: line 1 column 1"),
    ],
)
def test_bad_json_is_refused_in_one_line(text, said):
    with pytest.raises(DocumentError) as caught:
        parse_json(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_stands_twice_with_one_value_loses_nothing():
    assert parse_json('{"a": 1, "a": 1}') == {"a": 1}


def test_64_levels_and_100_digits_are_read():
    assert parse_json('{"a":' * 63 + "1" + "}" * 63)
    assert parse_json("9" * 100) == 10**100 - 1


def test_numbers_that_json_lacks_are_read_where_our_own_files_hold_them():
    assert parse_json("[Infinity]", finite=False) == [float("inf")]


def test_bytes_of_file_names_are_read_where_names_are_expected():
    assert parse_json('"caf\\udce9.nii"', names_files=True) == "caf\udce9.nii"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "x: !!python/object/apply:os.system ['true']",
            "line 1 asks for 'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
        ("a: 1\nx: !unknown y", "line 2 asks for '!unknown'"),
        ("a: 1\na: 1", "'a' stands there twice, near line 1"),
        ("a: &a [*a]", "holds the alias itself"),
        ("a: .nan", "the number nan"),
        ("a: 2001-01-01", "of the kind 'date'"),
        ("a: !!binary aGVsbG8=", "of the kind 'bytes'"),
        ("a: 0x_", "not of the type that it says"),
        ("a: 2001-99-01", "not of the type that it says"),
        ("1: 2", "'1' should be a name"),
        ("? [a, b]\n: 1", "unhashable key in line 1"),
        ("a: *b", "undefined alias 'b' in line 1"),
        ("a: 1\n---\nb: 2", "another document in line 2"),
        ("a\0b", "unacceptable character #x0000"),
        ("- " * 5000 + "a", "more than 64 deep"),
        ("9" * 5000, "a number of 5,000 digits"),
    ],
)
def test_bad_yaml_is_refused_in_one_line(text, said):
    with pytest.raises(DocumentError) as caught:
        parse_yaml(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def laughs(levels):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    return "\n".join(lines + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)])


@pytest.mark.parametrize("levels", [5, 10, 40])
def test_aliases_that_stand_for_too_many_values_are_refused_at_once(levels):
    begun = time.process_time()
    with pytest.raises(DocumentError, match="more than 100,000 values"):
        parse_yaml(laughs(levels))
    assert time.process_time() - begun < 1


def test_some_aliases_are_read():
    assert parse_yaml(laughs(2))["a1"] == [["x"] * 10] * 10
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}")["b"] == {"x": 1, "y": 2}


def test_merge_keys_that_double_are_refused_at_once():
    lines = ["x0: &m0 {a: 1}"] + [f"x{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}" for n in range(1, 40)]
    with pytest.raises(DocumentError, match="more than 100,000 values"):
        parse_yaml("\n".join(lines))


@pytest.mark.parametrize(("read", "text"), [(read_json, '{"a": "\u00e4"}'), (read_yaml, "a: \u00e4")])
def test_utf_8_is_read_with_and_without_its_mark(read, text, tmp_path):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "x").write_text(text, encoding)
        assert read(tmp_path / "x") == {"a": "\u00e4"}


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_another_encoding_is_named(read, encoding, tmp_path):
    (tmp_path / "x").write_text("a: \u00e4\u00e4", encoding)
    with pytest.raises(DocumentError, match="not in UTF-8"):
        read(tmp_path / "x")


def test_a_long_file_is_not_read(tmp_path):
    (tmp_path / "x").write_text(" " * (documents.MOST_YAML_BYTES + 1))
    with pytest.raises(DocumentError, match="longer than 262,144 bytes"):
        read_yaml(tmp_path / "x")
    with pytest.raises(DocumentError, match="longer than 10 bytes"):
        read_json(tmp_path / "x", most_bytes=10)


def test_a_missing_file_is_told_without_its_path(tmp_path):
    with pytest.raises(DocumentError, match=r"^No such file or directory$"):
        read_json(tmp_path / "x")


# Texts of errors


def test_a_message_cannot_command_the_terminal():
    assert str(InputError("a\x1b[31mb\tc\u202ed\nnext caf\udce9")) == "a\\x1b[31mb\\tc\\u202ed\nnext caf\udce9"


def test_a_long_message_keeps_its_begin_and_end():
    text = readable("begin " + "x" * 10_000 + " end")
    assert len(text) <= LONGEST
    assert text.startswith("begin xx")
    assert text.endswith("xx end")
    assert "8,110 characters" in text  # 10,010 less twice 950


def test_a_message_of_the_longest_length_is_whole():
    assert readable("x" * LONGEST) == "x" * LONGEST
