"""Data of your own after they are read: a table of small files of every kind, and what each became."""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cotmi.cli import main
from cotmi.core import CotmiError, DataError
from cotmi.data.choices import read_choices
from cotmi.data.extractors import EXTRACTORS, MAX_LENGTH, extract, get_extractor
from cotmi.data.loading import load_data
from cotmi.training.run_config import RunConfig, load_run_data

ANIMALS = ["ant", "bee", "cat", "dog"]
COLOURS = ["red", "green", "blue", "grey", "pink"]


def write(path, rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return str(path)


def quiz(i, **more):
    return {"question": f"Which one is number {i}?", "why": f"Number {i} is counted off.", **more}


def listed(i, label, choices=ANIMALS, **more):
    return quiz(i, answer=label, options=list(choices), **more)


PARTS = {"input": "question", "label": "answer", "rationale": "why"}
CHOICES = {**PARTS, "choices": "options"}
WITH_OPTIONS = {"columns": CHOICES, "input_template": r"{question}\n{options}"}
AMBIGUOUS = "may count from 0 or from 1"

# name: rows, options, kind, used of all rows, dropped by reason, label of the row with `question` number 1
FILES = {
    "choices as a list, label as text": (
        [listed(i, ANIMALS[i % 4]) for i in range(40)], WITH_OPTIONS, "choices", 40, {}, "bee"),
    "choices with spaces around": (
        [listed(i, ANIMALS[i % 4], [f" {a} " for a in ANIMALS]) for i in range(40)], WITH_OPTIONS, "choices", 40, {},
        "bee"),
    "label in other capitals": (
        [listed(i, ANIMALS[i % 4].upper()) for i in range(40)], WITH_OPTIONS, "choices", 40, {}, "bee"),
    "label as a letter": ([listed(i, "ABCD"[i % 4]) for i in range(40)], WITH_OPTIONS, "choices", 40, {}, "bee"),
    "label as a letter in parentheses": (
        [listed(i, f"({'abcd'[i % 4]})") for i in range(40)], WITH_OPTIONS, "choices", 40, {}, "bee"),
    "label as a place from 0": ([listed(i, i % 4) for i in range(40)], WITH_OPTIONS, "choices", 40, {}, "bee"),
    "label as a place from 1": ([listed(i, i % 4 + 1) for i in range(40)], WITH_OPTIONS, "choices", 40, {}, "bee"),
    "label as a place, told": (
        [listed(i, i % 2 + 1) for i in range(40)], {**WITH_OPTIONS, "label_form": "index0"}, "choices", 40, {}, "cat"),
    "label that is a number among numbers": (
        [listed(i, i % 3 + 1, (3, 1, 2)) for i in range(40)], WITH_OPTIONS, "choices", 40, {}, "2"),
    "a label that is none of the choices": (
        [listed(i, "E" if i < 2 else "ABCD"[i % 4]) for i in range(80)], WITH_OPTIONS, "choices", 78,
        {"unusable gold label": 2}, None),
    "choices parted by bars": (
        [{**listed(i, "ABCD"[i % 4]), "options": "ant | bee|cat |dog"} for i in range(40)], WITH_OPTIONS, "choices", 40,
        {}, "bee"),
    "choices as two lists": (
        [{**listed(i, "1234"[i % 4]), "options": {"text": ANIMALS, "label": list("1234")}} for i in range(40)],
        WITH_OPTIONS, "choices", 40, {}, "bee"),
    "choices that carry their letter": (
        [listed(i, "ABCD"[i % 4], [f"{m}){a}" for m, a in zip("ABCD", ANIMALS, strict=True)]) for i in range(40)],
        WITH_OPTIONS, "choices", 40, {}, "bee"),
    "choices in columns": (
        [quiz(i, answer="ABCD"[i % 4], **dict(zip("ABCD", ANIMALS, strict=True))) for i in range(40)],
        {"columns": {**PARTS, "choices": list("ABCD")}, "input_template": "{question} {options}"}, "choices", 40, {},
        "bee"),
    "choices that cannot be read": (
        [{**listed(i, "ABCD"[i % 4]), **({"options": 7} if i < 3 else {})} for i in range(40)], WITH_OPTIONS, "choices",
        37, {"unusable choices": 3}, None),
    "a premise and a hypothesis": (
        [{"premise": f"Box {i} is red.", "hypothesis": "It has a colour.", "label": "yes" if i % 2 else "no",
          "rationale": "Red is one."} for i in range(40)],
        {"input_template": "{premise} So: {hypothesis}"}, "choice", 40, {}, "yes"),
    "a template with an empty field": (
        [{"premise": f"Box {i} is red.", "hypothesis": "" if i < 2 else "It has a colour.", "rationale": "Red.",
          "label": "yes no".split()[i % 2]} for i in range(40)],
        {"input_template": "{premise} So: {hypothesis}"}, "choice", 38, {"empty field": 2}, None),
    "braces in the cells": (
        [quiz(i, answer=str(i), set="{question}") for i in range(40)],
        {"columns": PARTS, "input_template": "{question} {{of}} {set}"}, "number", 40, {}, "1"),
    "objects inside objects": (
        [{"question": {"stem": f"Which one is number {i}?", "choices": [
            {"text": a, "label": m} for m, a in zip("ABCD", ANIMALS, strict=True)]}, "key": "ABCD"[i % 4], "why": "So."}
         for i in range(40)],
        {"columns": {"label": "key", "rationale": "why", "choices": "question.choices"},
         "input_template": "{question.stem} {options}"}, "choices", 40, {}, "bee"),
    "a solution with hashes": (
        [quiz(i, answer=f"There are <<{i}+1000={i + 1000}>>{i + 1000}.\n#### {i + 1000:,}") for i in range(40)],
        {"columns": {"input": "question", "rationale": "answer"}, "extractor": "hashes"}, "number", 40, {}, "1,001"),
    "a solution that lacks its hashes": (
        [quiz(i, answer="Nobody knows." if i < 4 else f"Count.\n#### {i}") for i in range(40)],
        {"columns": {"input": "question", "rationale": "answer"}, "extractor": "hashes"}, "number", 36,
        {"no marker": 4}, None),
    "a solution in a box": (
        [quiz(i, answer=rf"It is halved, so $\boxed{{\frac{{{i}}}{{2}}}}$.") for i in range(40)],
        {"columns": {"input": "question", "rationale": "answer"}, "extractor": "boxed"}, "number", 40, {}, "1/2"),
    "thoughts and an answer": (
        [quiz(i, answer=f"<think>It is {COLOURS[i % 5]}.</think>\n{COLOURS[i % 5]}") for i in range(40)],
        {"columns": {"input": "question", "rationale": "answer"}, "extractor": "think"}, "choice", 40, {}, "green"),
    "a letter at the end, with choices": (
        [{**listed(i, ""), "text": f"Counting on. So the answer is ({'abcd'[i % 4]})."} for i in range(40)],
        {"columns": {"input": "question", "rationale": "text", "choices": "options"}, "extractor": "letter"}, "choices",
        40, {}, "bee"),
    "a pattern of one's own": (
        [quiz(i, answer=f"Because. => {i}") for i in range(40)],
        {"columns": {"input": "question", "rationale": "answer"}, "extractor": r"regex:=> (?P<label>\d+)"}, "number",
        40, {}, "1"),
    "a teacher's text beside a gold label": (
        [quiz(i, answer=str(i), said=f"One counts. The answer is {i + (i % 4 == 0)}.") for i in range(40)],
        {"columns": {**PARTS, "rationale": "said"}, "extractor": "answer-is"}, "number", 40, {}, "1"),
    "labels to be written another way": (
        [quiz(i, answer=i % 2) for i in range(40)],
        {"columns": PARTS, "label_words": {"0": "no", "1": "yes"}}, "choice", 40, {}, "yes"),
    "three explanations, the first": (
        [quiz(i, answer="yes no".split()[i % 2], e1="" if i == 1 else "First.", e2="Second is longer.")
         for i in range(40)],
        {"columns": {**PARTS, "rationale": ["e1", "e2"]}}, "choice", 40, {}, "no"),
    "explanations in a list, the longest": (
        [{**quiz(i, answer="yes no".split()[i % 2]), "why": ["One.", "This one.", "It."]} for i in range(40)],
        {"columns": PARTS, "explanations": "longest"}, "choice", 40, {}, "no"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_small_file(tmp_path, name):
    rows, options, kind, used, dropped, label = FILES[name]
    data = load_data(write(tmp_path / "mine.jsonl", rows), **options)
    assert data.report.label_kind == kind and data.report.kind_reason
    assert data.report.files["train"].read == len(rows)
    assert data.report.files["train"].used == used and data.report.files["train"].dropped == dropped
    assert {problem: len(samples) for problem, samples in data.report.files["train"].samples.items()} == {
        problem: min(count, 5) for problem, count in dropped.items()}
    examples = {row["id"]: row for part in data.examples.values() for row in part}
    if label is not None:
        assert examples["train-1"]["gold_label"] == label
    for row in examples.values():
        assert row["rationale"] and row["input"] and "####" not in row["rationale"]
        assert not row["choices"] or row["gold_label"] in row["choices"]
        assert all(choice == choice.strip() for choice in row["choices"])


def row_1(data):
    return next(row for part in data.examples.values() for row in part if row["id"] == "train-1")


def test_what_the_inputs_are_made_of(tmp_path):
    def told(name):
        rows, options, *_ = FILES[name]
        return row_1(load_data(write(tmp_path / "mine.jsonl", rows), **options))

    assert told("choices as a list, label as text")["input"] == (
        "Which one is number 1?\nAnswer Choices:\n(a) ant\n(b) bee\n(c) cat\n(d) dog")
    assert told("a premise and a hypothesis")["input"] == "Box 1 is red. So: It has a colour."
    assert told("braces in the cells")["input"] == "Which one is number 1? {of} {question}"
    assert told("a solution with hashes")["rationale"] == "There are 1001."
    assert told("three explanations, the first")["rationale"] == "Second is longer."
    assert told("explanations in a list, the longest")["rationale"] == "This one."
    taught = told("a teacher's text beside a gold label")
    assert (taught["rationale"], taught["teacher_label"], taught["gold_label"]) == ("One counts.", "1", "1")


def test_every_sample_shows_the_cells_as_they_are(tmp_path):
    rows, options, *_ = FILES["a label that is none of the choices"]
    data = load_data(write(tmp_path / "mine.jsonl", rows), **options)
    sample = data.report.files["train"].samples["unusable gold label"][0]["text"]
    assert 'answer: "E"' in sample and '"ant"' in sample and "Which one is number 0?" in sample
    assert sample in str(data.report)


def test_places_that_may_count_from_0_or_1_are_refused(tmp_path):
    path = write(tmp_path / "mine.jsonl", [listed(i, i % 2 + 1) for i in range(40)])
    with pytest.raises(DataError, match=AMBIGUOUS):
        load_data(path, **WITH_OPTIONS)


WRONG = [
    ({"columns": PARTS, "input_template": "{qestion}"}, "Did you mean 'question'"),
    ({"columns": PARTS, "input_template": "{question} {answer}"}, "would read what it is to write"),
    ({"columns": PARTS, "input_template": "{question!r}"}, "only the name of a column"),
    ({"columns": PARTS, "input_template": "{question.__class__}"}, "does not have"),
    ({"columns": PARTS, "input_template": "{0}"}, "does not have"),
    ({"columns": PARTS, "extractor": "hash"}, "Did you mean 'hashes'"),
    ({"columns": PARTS, "extractor": "regex:("}, "no regular expression"),
    ({"columns": PARTS, "extractor": "regex:a+"}, "is missing"),
    ({"columns": PARTS, "explanations": "both"}, "explanations is 'both'"),
    ({"columns": PARTS, "label_form": "letters"}, "Did you mean 'letter'"),
    ({"columns": {**PARTS, "input": ["question", "why"]}}, "is an input_template"),
    ({"columns": PARTS, "recipe": "gsm8"}, "Did you mean 'gsm8k'"),
    ({"recipe": "aqua"}, "recipe aqua takes the .* from"),
]


@pytest.mark.parametrize(("options", "complaint"), WRONG)
def test_wrong_options(tmp_path, options, complaint):
    path = write(tmp_path / "mine.jsonl", [quiz(i, answer=str(i)) for i in range(40)])
    with pytest.raises(DataError, match=complaint) as caught:
        load_data(path, **options)
    assert len(str(caught.value)) <= 400 and "\n" not in str(caught.value)


# -- several explanations --------------------------------------------------------------------------------------------

def test_all_explanations_are_for_training_and_never_leak(tmp_path):
    rows = [quiz(i, answer=str(i), e1=f"One {i}.", e2=f"Two {i}." if i % 2 else None, e3="") for i in range(60)]
    options = {"columns": {**PARTS, "rationale": ["e1", "e2", "e3"]}, "explanations": "all"}
    data = load_data(write(tmp_path / "mine.jsonl", rows), **options)
    questions = {split: set(part["input"]) for split, part in data.examples.items()}
    assert not questions["train"] & questions["valid"] and not questions["train"] & questions["test"]
    assert not questions["valid"] & questions["test"] and len(set().union(*questions.values())) == 60
    for split in ("valid", "test"):
        assert len(questions[split]) == len(data.examples[split]) == 6
    train = data.examples["train"]
    odd = sum(int(label) % 2 for label in set(train["gold_label"]))
    assert len(train) == len(questions["train"]) + odd and set(train["rationale"]) >= {f"One {train[0]['gold_label']}."}
    assert any("further explanations" in note for note in data.report.notes)


def test_a_question_that_is_there_twice_stays_in_one_split(tmp_path):
    rows = [quiz(i // 3, answer=str(i // 3)) for i in range(90)]
    data = load_data(write(tmp_path / "mine.jsonl", rows), columns=PARTS)
    questions = [set(part["input"]) for part in data.examples.values()]
    assert sum(map(len, questions)) == 30 and sum(map(len, data.examples.values())) == 90


# -- the report -------------------------------------------------------------------------------------------------------

def test_the_report_finds_repeats_and_leaks(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", [quiz(i, answer=str(i)) for i in range(10)] + [quiz(0, answer="9")])
    write(folder / "valid.jsonl", [quiz(20, answer="1")])
    write(folder / "test.jsonl", [quiz(3, answer="3"), {**quiz(4, answer="4"), "question": "WHICH one is number 4"},
                                  quiz(30, answer="5")])
    report = load_data(str(folder), columns=PARTS).report
    train, test = report.checks["train"], report.checks["test"]
    assert (train.repeated, train.nearly_repeated, train.conflicting) == (1, 0, 1)
    assert (test.leaked["train"], test.nearly_leaked["train"]) == (1, 1)
    assert any(note.startswith("1 of the 3 test inputs are in train too") for note in report.notes)
    assert any(note.startswith("1 of the 3 test inputs are nearly in train") for note in report.notes)
    assert train.lengths["input"].words_median == 5 and train.balance["9"] == 2
    assert type(report).from_dict(json.loads(json.dumps(report.to_dict()))) == report


# -- advice that works ------------------------------------------------------------------------------------------------

def advised(message):
    "The words of the first command in a message."
    command = message[message.index("cotmi data "):]
    return shlex.split(command.partition(", or ")[0])[2:]


UNUSABLE = {
    "solutions as labels": ([quiz(i, answer=f"Count.\n#### {i}") for i in range(40)],
                            {"columns": {"input": "question", "label": "answer"}, "label_kind": "number"}, "hashes"),
    "words for numbers": ([quiz(i, answer=f"word {i}") for i in range(40)], {"columns": PARTS, "label_kind": "number"},
                          "label_kind text"),
    "no rationale in any row": ([quiz(i, answer=str(i), no="") for i in range(40)],
                                {"columns": {**PARTS, "rationale": "no"}}, "null"),
    "labels that are no choices": ([listed(i, f"x{i % 3}") for i in range(40)], {"columns": CHOICES},
                                   "label_kind text"),
    "choices that are none": ([{**listed(i, str(i)), "options": "ant"} for i in range(40)], {"columns": CHOICES},
                              "null"),
    "an input without a text": ([quiz(i, answer=str(i), body="") for i in range(40)],
                                {"columns": {**PARTS, "input": "body"}}, "question"),
    "a template with an empty column": ([quiz(i, answer=str(i), body="") for i in range(40)],
                                        {"columns": {k: v for k, v in PARTS.items() if k != "input"},
                                         "input_template": "{body} {question}"}, '"question"'),
    "labels inside objects": ([quiz(i, answer={"text": str(i), "start": 3}) for i in range(40)], {"columns": PARTS},
                              "answer.text"),
    "the wrong extractor": ([quiz(i, answer=f"Count.\n#### {i}") for i in range(40)],
                            {"columns": {"input": "question", "rationale": "answer"}, "extractor": "boxed"}, "hashes"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_when_nothing_is_usable_the_advice_works(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    rows, options, word = UNUSABLE[name]
    write(tmp_path / "mine.jsonl", [{k: v for k, v in row.items()} for row in rows])
    if "rationale" not in options["columns"]:
        options = {**options, "columns": {**options["columns"], "rationale": None}}
    with pytest.raises(DataError, match="no usable row of") as caught:
        load_data("mine.jsonl", **options)
    message = str(caught.value)
    assert word in message and "Row train-" in message and len(message) <= 400
    source, *words = advised(message)
    assert source == "mine.jsonl" and words[::3] == ["-p"] * len(words[::3])
    config = RunConfig(dataset=source, **{key: value for key, value in zip(words[1::3], words[2::3], strict=True)})
    assert sum(map(len, load_run_data(config).examples.values())) == 40


def test_a_column_that_is_missing_gets_a_command_that_works(tmp_path):
    path = write(tmp_path / "mine.jsonl", [{"question": f"{i}?", "answer": str(i)} for i in range(40)])
    with pytest.raises(DataError, match="no column 'rationale'") as caught:
        load_data(path, columns={"input": "question", "label": "answer"})
    told = str(caught.value)
    words = shlex.split(told[told.index("-p columns"):told.index(" -p method") + len(" -p method finetune")])
    config = RunConfig(dataset=path, columns=words[2], method=words[5])
    assert config.columns == {"input": "question", "label": "answer", "rationale": None}
    assert not load_run_data(config).spec.rationales


def test_everything_can_be_said_on_the_command_line(tmp_path):
    rows = [listed(i, "ABCD"[i % 4]) for i in range(60)]
    path, page = write(tmp_path / "mine.jsonl", rows), tmp_path / "page.html"
    words = ["data", path, "-p", "columns", json.dumps(CHOICES), "-p", "input_template", r"{question}\n{options}",
             "-p", "label_form", "letter", "-p", "valid_fraction", "0.2", "-p", "test_fraction", "0.25",
             "--samples", "1", "--html", str(page)]
    done = subprocess.run([sys.executable, "-c", "from cotmi.cli import main; main()", *words], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Labels are one of those that its row lists" in done.stdout and "(c) cat" in done.stdout
    assert re.search(r"^test +15 +15 ", done.stdout, re.M) and re.search(r"^valid +9 +9 ", done.stdout, re.M)
    html = page.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>") and "Repeats and leaks" in html and "(c) cat" in html
    assert "<script" not in html and "src=" not in html and "http" not in html


def test_other_stories_for_another_demo_seed():
    first, second = (load_run_data(RunConfig(demo_size=40, demo_seed=seed)).examples["test"] for seed in (0, 1))
    assert first["input"][:] != second["input"][:]
    with pytest.raises(CotmiError, match="valid_fraction|held out for valid"):
        load_run_data(RunConfig(demo_size=40, valid_fraction=1.5))


# -- extractors and nasty texts --------------------------------------------------------------------------------------

NASTY = ["(", ")", "{", "}", "#", "####", "\\boxed{", "<think>", "</think>", "the answer is ", "answer: ", " ", "\n",
         "*", "$", "(a)", "=", "<<", "So the answer is (c). "]


@pytest.mark.parametrize("name", EXTRACTORS)
def test_extractors_take_linear_time_and_never_half_a_label(name):
    for piece in NASTY:
        text = (piece * (MAX_LENGTH // len(piece) + 1))[:MAX_LENGTH]
        start = time.process_time() # of this process: other work on the machine does not count
        found = extract(EXTRACTORS[name], text)
        assert time.process_time() - start < 2, piece # quadratic work on a hundred thousand characters takes minutes
        assert bool(found.label and found.rationale) or found.problem, piece


def test_a_pattern_that_takes_for_ever_is_refused(tmp_path):
    rows = [quiz(i, answer="a" * 500 + "!") for i in range(3)]
    start = time.perf_counter()
    with pytest.raises(DataError, match="takes more than 1 s"):
        load_data(write(tmp_path / "mine.jsonl", rows), columns={"input": "question", "rationale": "answer"},
                  extractor="regex:(?P<label>(a|aa)+)$")
    assert time.perf_counter() - start < 30
    assert get_extractor("regex:(?P<label>x)").take_apart("y x").label == "x"


@pytest.mark.parametrize("piece", ["(", "a) ", "|", "[", "{", '["', "A)", "\n", "(a) x "])
def test_nasty_choices_are_read_in_linear_time(piece):
    start = time.process_time()
    read_choices(piece * (MAX_LENGTH // len(piece)))
    assert time.process_time() - start < 3


# -- the tutorial, word by word ---------------------------------------------------------------------------------------

TUTORIAL = Path(__file__).resolve().parents[1] / "nbs" / "tutorials" / "your_own_data.ipynb"


def tutorial_cells():
    "The cells of the tutorial: kind and text."
    return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(TUTORIAL.read_text())["cells"]]


def commands(text):
    "The words of every `cotmi` command in a cell, in a notebook's or a shell's form."
    lines = re.findall(r"^!?cotmi (.*)$", text.replace("\\\n", " "), re.M)
    return [[w for w in shlex.split(line) if w != "2>/dev/null"] for line in lines]


def test_the_three_ways_of_the_tutorial(tmp_path, monkeypatch, capsys):
    "Files are written and looked at as the page says; what it trains on is loaded as the run would load it."
    monkeypatch.chdir(tmp_path)
    names, shown, trained = {}, [], []
    for kind, text in tutorial_cells():
        for words in commands(text):
            if words[0] == "run":
                trained.append(words)
            elif words[0] == "data" and Path(words[1]).exists():
                with pytest.raises(SystemExit) as ended:
                    main(words)
                shown.append((words[1], ended.value.code, capsys.readouterr()))
        if kind == "code" and ("open(" in text or "import csv" in text):
            exec(text, names) # noqa: S102 - a page of our own
    assert [(name, code) for name, code, _ in shown] == [
        ("days.csv", 0), ("days.csv", 1), ("days.csv", 0), ("sums.jsonl", 0), ("quiz.tsv", 0)]
    assert Path("days.html").exists() and "columns maps 'input' to 'query'" in shown[1][2].err
    assert "199 of 199 labels are numbers" in shown[3][2].out and "Answer Choices:\n(a)" in shown[4][2].out
    assert len(trained) == 2
    for words in trained:
        given = dict(pair for name, *pair in zip(words[2::3], words[3::3], words[4::3], strict=True) if name == "-p")
        data = load_run_data(RunConfig.resolve(given))
        assert data.spec.rationales and len(data.examples["train"]) > 100
