"""Reading YAML: safe, bounded, with the line and column of everything."""

from __future__ import annotations

import codecs
import math

import pytest

from distiller_ng.config.documents import MAX_BYTES, load_document, read_text
from distiller_ng.config.marks import Mark, Marks, format_path
from distiller_ng.errors import ScheduleError


def data(text: str):
    return load_document(text, "f.yaml").data


def refusal(text: str) -> str:
    with pytest.raises(ScheduleError) as caught:
        load_document(text, "f.yaml")
    assert len(caught.value.problems) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E3", 1000.0),
        ("2.", 2.0),
        (".5", 0.5),
        ("-3", -3),
        ("+.inf", math.inf),
        ("1_000", 1000),
        ("0x10", 16),
        ("0o17", 15),
        ("2:4", "2:4"),
        ("12:30:45", "12:30:45"),
        ("2020-01-01", "2020-01-01"),
        ("1.2.3", "1.2.3"),
        ("True", True),
        ("yes", True),
        ("off", False),
        ("~", None),
        ("null", None),
        ("'0.5'", "0.5"),
        ("!!float 1", 1.0),
        ("!!str 1", "1"),
    ],
)
def test_scalars(text, value):
    found = data(f"a: {text}")["a"]
    assert found == value and type(found) is type(value)


def test_not_a_number_is_one():
    assert math.isnan(data("a: .nan")["a"])


def test_spacing_quotes_comments_and_both_kinds_of_collections():
    text = "a : 'x'   # why\n\"b\":\n- 1\n- {c: [d,  e]}\n? long\n: {}\n"
    assert data(text) == {"a": "x", "b": [1, {"c": ["d", "e"]}], "long": {}}


def test_marks_of_keys_and_values():
    document = load_document("top:\n  first: 1\n  list:\n    - x\n    - {k: v}\n", "f.yaml")
    marks = document.marks
    assert marks.of_key(("top", "first")) == Mark(2, 3)
    assert marks.of_value(("top", "first")) == Mark(2, 10)
    assert marks.of_value(("top", "list")) == Mark(3, 3), "a block stands where its key does"
    assert marks.of_value(("top", "list", 0)) == Mark(4, 7)
    assert marks.of_value(("top", "list", 1, "k")) == Mark(5, 11)
    assert marks.of_value(("top", "list", 1, "missing")) == Mark(5, 7), "else what contains it"
    assert marks.of_value(("nowhere",)) == Mark(1, 1)


def test_without_marks_there_is_no_line():
    assert Marks().of_value(("a", 1)) == Mark(0, 0)


def test_paths_quote_what_is_no_plain_word():
    assert format_path(("pruners", "p", "levels", "conv1.weight")) == "pruners.p.levels['conv1.weight']"
    assert format_path(("policies", 2, "lr_scheduler")) == "policies[2].lr_scheduler"


def test_the_last_of_equal_keys_counts_and_is_warned_about():
    document = load_document("a: {x: 1}\nb: 2\na: {y: 3}\n", "f.yaml")
    assert document.data == {"b": 2, "a": {"y": 3}}
    assert [str(w) for w in document.warnings] == ["f.yaml:3:1: a: the key 'a' is repeated; this last one counts"]
    assert document.marks.of_value(("a", "y")) == Mark(3, 8)
    assert document.marks.of_value(("a", "x")) == Mark(3, 4), "nothing points to the mapping that lost"


def test_aliases_and_merged_mappings():
    text = "base: &b {p: 1, q: 2}\nuse:\n  <<: *b\n  q: 3\nboth: {<<: [*b, {r: 9, p: 8}]}\nsame: *b\n"
    assert data(text) == {
        "base": {"p": 1, "q": 2},
        "use": {"p": 1, "q": 3},
        "both": {"p": 1, "q": 2, "r": 9},
        "same": {"p": 1, "q": 2},
    }


SYNTAX = [
    ("a: [1, 2", "f.yaml:1:9: not valid YAML"),
    ("a: 'x\nb: 1", "f.yaml:2:5: not valid YAML"),
    ("a:\n\tb: 1", "indented with spaces, not tabs"),
    ("a: 1\n b: 2", "f.yaml:2:3: not valid YAML"),
    ("a: 1\n---\nb: 2", "f.yaml:2:1: a schedule is one YAML document"),
    ("a: *nowhere", "undefined alias 'nowhere'"),
    ("a: \x07", "f.yaml:1:4: character"),
    ("a: &x [*x]", "when its aliases are expanded"),
    ("a: " + "[" * 500, "more than 40 levels of nesting"),
    ("{" * 3000, "more than 40 levels of nesting"),
    ("%YAML 9.9\n---\na: 1", "version 1.* is required"),
]


@pytest.mark.parametrize(("text", "words"), SYNTAX, ids=[s[1][:30] for s in SYNTAX])
def test_text_that_is_no_yaml(text, words):
    assert words in refusal(text)


def test_an_alias_bomb_is_refused_quickly():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "when its aliases are expanded" in refusal("\n".join(lines))


BAD_VALUES = [
    ("a: !!python/object/apply:os.system ['true']", "f.yaml:1:4: a: the tag '!!python/object/apply:os.system'"),
    ("a: !Custom {b: 1}", "the tag '!Custom' has no meaning"),
    ("a: !!int abc", "'abc' is not a valid int"),
    ("a: !!float abc", "'abc' is not a valid float"),
    ("a: !!bool abc", "'abc' is not a valid bool"),
    ("a: " + "9" * 5000, "is not a valid int"),
    ("b: 1\n? [x, y]\n: 1", "f.yaml:2:3: ['<key at 2:3>']: a list or mapping cannot be a key"),
    ("a:\n  <<: 5", "merges mappings only"),
]


@pytest.mark.parametrize(("text", "words"), BAD_VALUES, ids=[b[1][:40] for b in BAD_VALUES])
def test_values_no_schedule_can_hold(text, words):
    document = load_document(text, "f.yaml")
    assert words in "\n".join(map(str, document.problems))


# -- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path, encoding):
    path = tmp_path / "s.yaml"
    path.write_bytes("a: größer\n".encode(encoding))
    assert read_text(path, str(path)) == "a: größer\n"


def test_windows_line_ends(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_bytes(b"a: 1\r\nb: 2\r\n")
    assert load_document(read_text(path, "s"), "s").marks.of_key(("b",)) == Mark(2, 1)


def test_a_missing_file_is_a_file_not_found_error_too(tmp_path):
    (tmp_path / "schedule.yaml").write_text("")
    path = tmp_path / "shedule.yaml"
    with pytest.raises(FileNotFoundError) as caught:
        read_text(path, str(path))
    assert isinstance(caught.value, ScheduleError)
    assert "file not found. Did you mean 'schedule.yaml'?" in str(caught.value)


BYTES = [
    (b"a: \xff\xfe", "s.yaml:1:4: not UTF-8 text"),
    (b"ok: 1\nb: \x80\x02", "s.yaml:2:4: not UTF-8 text"),
    (b"PK\x03\x04\xff\xff", "a zip archive, such as a PyTorch checkpoint"),
    (b"\x80\x02}q\x00.\xff", "a pickle file"),
    (codecs.BOM_UTF16_LE + b"\x00", "not UTF-16 text"),
    (b"a" * (MAX_BYTES + 1), "more than 1 MiB"),
]


@pytest.mark.parametrize(("content", "words"), BYTES, ids=[b[1][:30] for b in BYTES])
def test_files_that_are_no_text(tmp_path, content, words):
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    with pytest.raises(ScheduleError, match=words.replace("(", "\\(")):
        read_text(path, "s.yaml")


def test_a_folder_and_an_impossible_name(tmp_path):
    with pytest.raises(ScheduleError, match=r":1:1: this is a folder, not a schedule file$"):
        read_text(tmp_path, "s")
    with pytest.raises(ScheduleError, match="cannot be read"):
        read_text("a\x00b", "s")
    with pytest.raises(ScheduleError, match="there is no folder"):
        read_text(tmp_path / "no" / "s.yaml", "s")
