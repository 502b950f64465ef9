"""The demo stories: true, varied, free of short cuts, and the same on every platform."""

import hashlib
import json
import re
from collections import Counter

import pytest

from cotmi.core import DataError
from cotmi.data.arithmetic import evaluate_equation
from cotmi.data.demo import LARGEST, NAMES, STEPS, THINGS, make_demo
from cotmi.data.loading import load_data
from cotmi.data.stated_answers import last_value

EVERY_KIND = [(steps, difficulty) for steps in (1, 2, 4) for difficulty in (1, 2, 3)]


def words(text):
    return re.findall(r"\w+|[^\w\s]", text)


@pytest.mark.parametrize(("steps", "difficulty"), EVERY_KIND)
def test_rationales_are_true(steps, difficulty):
    rows = make_demo(150, steps, seed=steps, difficulty=difficulty)
    assert {row["rationale"].count(" = ") for row in rows} == set(range(1, steps + 1))
    for row in rows:
        first, *worked = row["rationale"].split(". ")
        count = float(re.search(r"\d+", first)[0])
        for sentence in worked:
            expression, result = re.search(r"(\d+ [-+*] \d+) = (\d+)", sentence).groups()
            assert float(expression.split()[0]) == count
            assert evaluate_equation(expression) == float(result) <= LARGEST[difficulty]
            count = float(result)
        assert count == float(row["label"]) == last_value(row["rationale"])
        assert row["teacher_label"] == row["label"]


@pytest.mark.parametrize(("steps", "difficulty"), EVERY_KIND)
def test_every_number_of_the_rationale_stands_in_the_story(steps, difficulty):
    for row in make_demo(100, steps, difficulty=difficulty):
        first, *worked = row["rationale"].split(". ")
        used = re.findall(r"\d+", first) + [re.search(r"[-+] (\d+) =", s)[1] for s in worked if " * " not in s]
        assert not Counter(used) - Counter(re.findall(r"\d+", row["input"]))


def test_a_seed_gives_the_same_rows_everywhere():
    digest = hashlib.sha256(json.dumps(make_demo(500, 3, 7, 3, 0.1), sort_keys=True).encode()).hexdigest()
    assert digest == "53696c15148dfc6ac971ed33849ee43d249a5bc93965062e8f6c849d696a2269"


def test_seeds_sizes_and_difficulties_differ():
    assert make_demo(50, seed=1) != make_demo(50, seed=2)
    assert make_demo(80)[:50] == make_demo(50)
    assert make_demo(50, difficulty=1) != make_demo(50, difficulty=2)


def test_no_story_comes_twice_and_splits_share_none():
    data = load_data("demo").examples
    inputs = [set(data[split]["input"]) for split in ("train", "valid", "test")]
    assert sum(map(len, inputs)) == 4000 == len(set().union(*inputs))


@pytest.mark.parametrize(("difficulty", "common", "copied", "summed"), [(1, 0.12, 0.12, 0.22), (2, 0.1, 0.12, 0.37)])
def test_no_label_is_common_and_no_number_of_the_story_gives_it_away(difficulty, common, copied, summed):
    "Half of the stories have one step, and about half of those add: so much the sum of all numbers gets right."
    rows = make_demo(4000, difficulty=difficulty)
    labels = Counter(row["label"] for row in rows)
    assert set(labels) == {str(n) for n in range(LARGEST[difficulty] + 1)}
    assert labels.most_common(1)[0][1] / len(rows) < common
    numbers = [list(map(int, re.findall(r"\d+", row["input"]))) for row in rows]
    rules = {"first": lambda n: n[0], "second": lambda n: n[1], "last": lambda n: n[-1], "largest": max,
             "smallest": min, "sum": sum}
    for name, rule in rules.items():
        right = sum(rule(n) == int(row["label"]) for n, row in zip(numbers, rows, strict=True)) / len(rows)
        assert right < (summed if name == "sum" else copied), name


def test_stories_are_short_and_varied():
    rows = make_demo(4000)
    assert max(len(words(row["input"])) for row in rows) <= 45
    assert max(len(words(row["rationale"])) for row in rows) <= 25
    vocabulary = {w for row in rows for w in words(row["input"]) + words(row["rationale"])}
    assert {name for name, *_ in NAMES} | set(THINGS) <= vocabulary and 120 < len(vocabulary) <= 400
    assert all(any(s.reason.split()[0] in row["rationale"] for row in rows) for s in STEPS if s.operator != "*")
    shapes = Counter(re.sub(r"\b[A-Z][a-z]+\b|\d+", "_", row["input"]) for row in rows)
    assert len(shapes) > 3500


def test_pronouns_always_mean_the_holder():
    pronoun = {name: they for name, they, _ in NAMES}
    for row in make_demo(500, steps=3, difficulty=3):
        holder = row["rationale"].split()[0]
        others = {n for n in words(row["input"]) if n in pronoun} - {holder}
        assert all(pronoun[n] != pronoun[holder] for n in others)


def test_every_story_has_as_many_steps_as_are_asked_for():
    assert {row["rationale"].count(" = ") for row in make_demo(100, 3, fewest=3)} == {3}
    assert {row["rationale"].count(" = ") for row in make_demo(100, 2, fewest=5)} == {2} # no more than the most


@pytest.mark.parametrize("distractors", [0.0, 0.3, 1.0])
def test_a_bystander_brings_a_number_that_the_rationale_leaves_out(distractors):
    def number_words(row): return len(re.findall(r"\d+", row["input"]))
    rows = make_demo(400, distractors=distractors)
    with_one = [row for row in rows if number_words(row) == row["rationale"].count(" = ") + 2] # a start, the steps
    assert all(number_words(row) == row["rationale"].count(" = ") + 1 for row in rows if row not in with_one)
    assert abs(len(with_one) / len(rows) - distractors) < 0.08


@pytest.mark.parametrize("stated", [0.0, 0.4, 1.0])
def test_how_often_a_rationale_states_its_result_is_a_knob(stated):
    rows, whole = make_demo(400, stated=stated), make_demo(400, stated=1.0)
    states = [row["rationale"].endswith(f" = {row['label']}.") for row in rows]
    assert abs(sum(states) / len(rows) - stated) < 0.08
    for row, complete in zip(rows, whole, strict=True): # the same stories, and the same words up to the result
        assert row["input"] == complete["input"]
        assert complete["rationale"].startswith(row["rationale"].rstrip("."))


def test_rationales_of_a_batch_differ_in_length():
    lengths = [len(words(row["rationale"])) for row in make_demo(64)]
    assert max(lengths) > 1.5 * min(lengths)


@pytest.mark.parametrize("slips", [0.0, 0.3, 1.0])
def test_a_slip_is_one_wrong_step_that_the_teacher_follows(slips):
    rows = make_demo(400, steps=3, slips=slips)
    slipped = 0
    for row in rows:
        equations = re.findall(r"(\d+ [-+*] \d+) = (\d+)", row["rationale"])
        wrong = sum(evaluate_equation(left) != float(right) for left, right in equations)
        assert wrong in (0, 1)
        assert (wrong == 0) == (row["teacher_label"] == row["label"])
        assert last_value(row["rationale"]) == float(row["teacher_label"])
        slipped += wrong
    assert abs(slipped / len(rows) - slips) < 0.07


def test_slips_show_in_the_report():
    report = load_data("demo", demo_size=1000, demo_slips=0.2).report
    assert 0.7 < report.splits["train"].teacher_accuracy < 0.9


@pytest.mark.parametrize("wrong", [{"size": 0}, {"steps": 0}, {"steps": 7}, {"difficulty": 4}, {"slips": 1.5},
                                   {"fewest": 0}, {"distractors": -0.1}, {"stated": 2}])
def test_bounds_are_named(wrong):
    with pytest.raises(DataError, match=f"demo {next(iter(wrong))} is .*; allowed is"):
        make_demo(**wrong)


def test_more_stories_than_there_are_is_no_endless_loop():
    assert len({r["input"] for r in make_demo(20_000, steps=1)}) == 20_000
