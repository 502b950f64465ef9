"""What labels are taken for, when two are the same, and what becomes of the odd one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotmi.core import DataError
from cotmi.data.labels import LABEL_KINDS, get_label_kind, guess_kind
from cotmi.data.loading import load_data
from cotmi.data.numbers import read_quantity, same_quantity, written_quantity

SAME = [("1,250", "1250"), ("$1,250.50", "1250.5"), ("40 %", "40%"), ("40 percent", "40 %"), ("3/4", "0.75"),
        ("1 1/2", "1.5"), ("12 apples", "12"), ("12 apples", "12 Apple"), ("€5", "5 euros"), ("-3", "−3"),
         ("(2 + 3)", "5"),
        ("2/6", "1/3"), ("7.", "7"), ("1,000,000 people", "1000000")]
OTHER = [("3 am", "3 pm"), ("50%", "0.5"), ("$5", "5 %"), ("1,250", "1.25"), ("seven", "7"), ("", ""), ("x", "x"),
         ("1/3", "0.33"), ("5", "-5"), ("12 apples", "12 pears"), ("3 apples and 4 pears", "3")]
WORDS = ["", "about 5", "5 or 6", "5 or more", "12:30", "1e9999", "v2.0", "555-1234 x", "3 apples and 4 pears", "%",
         "$",
         "one half", "0x10", "1_000", "٣", "9" * 500]


equal = get_label_kind("number").equal


@pytest.mark.parametrize(("a", "b"), SAME)
def test_numbers_that_are_the_same(a, b):
    assert equal(a, b) and equal(b, a)


@pytest.mark.parametrize(("a", "b"), OTHER)
def test_numbers_that_differ(a, b):
    assert not equal(a, b) and not equal(b, a)


@pytest.mark.parametrize("text", WORDS)
def test_what_is_no_number(text):
    assert read_quantity(text) is None and not get_label_kind("number").is_valid(text)


@given(st.integers(-10**12, 10**12), st.sampled_from(["", " ", "%", " apples", "."]))
def test_whole_numbers_come_back_however_they_are_written(value, unit):
    plain, thousands = f"{value}{unit}", f"{value:,}{unit}"
    for text in (plain, thousands, f" {thousands} "):
        found = written_quantity(text)
        assert found is not None and found.value == value
    key = get_label_kind("number").key
    assert same_quantity(plain, thousands) and key(plain) == key(thousands)


@given(st.text(max_size=60))
def test_no_text_breaks_a_kind(text):
    for kind in LABEL_KINDS.values():
        assert kind.equal(text, text) or kind.key(text) is None
        assert kind.is_valid(text) == (kind.key(text) is not None)
        kind.faithful(text, text, [text])


def test_a_rationale_arrives_at_a_number_as_people_write_it():
    number = get_label_kind("number")
    assert number.faithful("So it is 5 * 250 = 1,250.", "$1,250", ())
    assert number.faithful("Half of it is 1 / 2 = 0.5", "1/2", ())
    assert number.faithful("So 3 are left.", "4 apples", ()) is False


# -- the guess ---------------------------------------------------------------------------------------------------------

GUESSES = {
    "one odd label among many numbers": (["7"] * 1318 + ["seven"], "number", "1,318 of 1,319 labels are numbers"),
    "too many odd labels": ([str(i) for i in range(90)] + [f"w{i}" for i in range(10)], "text", "fewer than 95%"),
    "dates are no numbers": ([f"12-04-20{i:02}" for i in range(40)], "text", "different texts"),
    "verses are no numbers": ([f"{i} {w}" for i, w in enumerate("abcdefghijklmnopqrstuvwxyz" * 2)], "text", ""),
    "amounts": ([f"${i},000" for i in range(1, 60)], "number", "59 of 59"),
    "shares": ([f"{i} %" for i in range(60)], "number", "60 of 60"),
    "a closed set": (["yes", "no"] * 20, "choice", "40 labels are of 2 different texts"),
    "a closed set with spaces": (["yes", "no ", " yes"] * 20, "choice", "60 labels are of 2 different texts"),
    "names": ([f"city {i}" for i in range(40)], "text", "40 labels are of 40 different texts"),
}


@pytest.mark.parametrize("name", GUESSES)
def test_the_guess_has_its_reason(name):
    labels, kind, reason = GUESSES[name]
    guess = guess_kind(labels, False)
    assert guess.name == kind and reason in guess.reason


def table(path, labels, **more):
    path.write_text("\n".join(json.dumps({"input": f"{i}?", "label": label, "rationale": "So.", **more})
                              for i, label in enumerate(labels)))
    return str(path)


def test_one_odd_label_is_one_counted_row(tmp_path):
    data = load_data(table(tmp_path / "n.jsonl", [*map(str, range(200)), "two hundred"]))
    file = data.report.files["train"]
    assert data.report.label_kind == "number" and file.used == 200 and file.dropped == {"unusable gold label": 1}
    assert file.samples["unusable gold label"][0]["text"] == 'input: "200?", label: "two hundred", rationale: "So."'
    assert "1 are not, such as 'two hundred'" in data.report.kind_reason and "'two hundred'" in str(data.report)


def test_spaces_around_labels_cost_no_row(tmp_path):
    spaced = ["yes" + " " * (i % 3 == 0) if i % 2 else "no" for i in range(90)]
    data = load_data(table(tmp_path / "spaces.jsonl", spaced, teacher_label="yes "))
    assert data.spec.labels == ("no", "yes") and data.report.files["train"].used == 90
    assert set(data.examples["train"]["label"]) == {"no", "yes"} and data.report.files["train"].teacher_correct == 45
    listed = load_data(table(tmp_path / "list.jsonl", ["in", "out "] * 20, choices=["in ", "out"], teacher_label=" in"))
    assert listed.report.files["train"].used == 40 and not listed.report.files["train"].kept
    assert listed.examples["train"]["choices"][0] == ["in", "out"]


def test_the_kind_can_be_told(tmp_path):
    path = table(tmp_path / "n.jsonl", map(str, range(40)))
    told = load_data(path, label_kind="text").report
    assert (told.label_kind, told.kind_reason) == ("text", "as given")
    with pytest.raises(DataError, match="Did you mean 'number'"):
        load_data(path, label_kind="numbr")
