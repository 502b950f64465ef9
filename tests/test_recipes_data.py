"""Recipes: files in the forms in which public data sets are published, with examples of our own."""

import csv
import json

import pytest

from cotmi.core import DataError
from cotmi.data.completions import NLI_LABELS
from cotmi.data.examples import SEGMENT_SEPARATOR
from cotmi.data.loading import DATASETS, load_data
from cotmi.data.recipes import RECIPES
from cotmi.training.run_config import RunConfig, load_run_data

THINGS = ["ice", "wood", "sand", "glass", "stone"]
MARKED = [{"text": thing, "label": mark} for thing, mark in zip(THINGS[:4], "ABCD", strict=False)]


def gsm8k(i):
    return {"question": f"Ada has {i} pens and gets {i}. How many has she?",
            "answer": f"She has {i}+{i}=<<{i}+{i}={2 * i}>>{2 * i} pens.\n#### {2000 * i:,}"}


def strategyqa(i):
    return {"qid": f"q{i}", "term": "Fish", "description": "animals", "question": f"Can fish {i} fly?",
            "answer": i % 2 == 1, "facts": [f"Fish {i} has fins.", "Fins are not wings."],
            "decomposition": ["What has it?", "Is #1 a wing?"], "evidence": [[["Fish-1"], "operation"]]}


def ecqa(i):
    return {"q_no": f"n{i}", "q_concept": "burn", "q_text": f"What burns in oven {i}?",
            **{f"q_op{k}": thing for k, thing in enumerate(THINGS, 1)}, "q_ans": THINGS[i % 5],
            "taskA_pos": "It burns.", "taskA_neg": "It does not.", "taskB": f"Oven {i} is hot, and this burns."}


def aqua(i):
    return {"question": f"A train needs {i} hours. How far is it?",
            "options": [f"{mark}){i + k} km" for k, mark in enumerate("ABCDE")],
            "rationale": f"It goes {i} km.\nAnswer: {'ABCDE'[i % 5]}", "correct": "ABCDE"[i % 5]}


def arc(i):
    return {"id": f"a{i}", "question": {"stem": f"What melts at {i}?", "choices": MARKED}, "answerKey": "ABCD"[i % 4]}


def arc_hub(i):
    marks = ["1", "2", "3", "4"] if i % 2 else list("ABCD")
    return {"id": f"a{i}", "question": f"What melts at {i}?", "choices": {"text": THINGS[:4], "label": marks},
            "answerKey": marks[i % 4]}


def openbookqa(i):
    return {**arc(i), "fact1": f"Fact {i}.", "humanScore": 1, "clarity": 1.4, "turkIdAnonymized": "b3"}


def openbookqa_hub(i):
    return {"id": f"o{i}", "question_stem": f"What melts at {i}?",
            "choices": {"text": THINGS[:4], "label": list("ABCD")},
            "answerKey": "ABCD"[i % 4], "fact1": f"Fact {i}.", "humanScore": 1.0}


def esnli(i):
    return {"pairID": f"p{i}", "gold_label": NLI_LABELS[i % 3], "Sentence1": f"A dog runs in yard {i}.",
            "Sentence2": "An animal moves.", "Explanation_1": "" if i == 1 else f"A dog is one, {i}.",
            "WorkerId": "w", "Sentence1_marked_1": f"A *dog* runs in yard {i}.",
            "Sentence2_marked_1": "An animal moves.",
            "Explanation_2": "Dogs are animals.", "Explanation_3": "Running is moving."}


def esnli_hub(i):
    return {"premise": f"A dog runs in yard {i}.", "hypothesis": "An animal moves.", "label": i % 3,
            "explanation_1": "" if i == 1 else f"A dog is one, {i}.", "explanation_2": "Dogs are animals.",
            "explanation_3": ""}


OPTIONS = "\nAnswer Choices:\n(a) ice\n(b) wood\n(c) sand\n(d) glass"
# form: recipe, row, file, kind, and of row 1 the input, the label and the rationale
FORMS = {
    "gsm8k": ("gsm8k", gsm8k, "train.jsonl", "number", "Ada has 1 pens and gets 1. How many has she?", "2,000",
              "She has 1+1=2 pens."),
    "strategyqa": ("strategyqa", strategyqa, "strategyqa_train.json", "choice", "Can fish 1 fly?", "yes",
                   "Fish 1 has fins. Fins are not wings."),
    "ecqa": ("ecqa", ecqa, "cqa_data_train.csv", "choices", f"What burns in oven 1?{OPTIONS}\n(e) stone", "wood",
             "Oven 1 is hot, and this burns."),
    "aqua": ("aqua", aqua, "train.json", "choices", "A train needs 1 hours. How far is it?\nAnswer Choices:\n(a) 1 km\n"
             "(b) 2 km\n(c) 3 km\n(d) 4 km\n(e) 5 km", "2 km", "It goes 1 km.\nAnswer: B"),
    "arc": ("arc", arc, "ARC-Challenge-Train.jsonl", "choices", f"What melts at 1?{OPTIONS}", "wood", ""),
    "arc, hub": ("arc", arc_hub, "arc.jsonl", "choices", f"What melts at 1?{OPTIONS}", "wood", ""),
    "openbookqa": ("openbookqa", openbookqa, "train_complete.jsonl", "choices", f"What melts at 1?{OPTIONS}", "wood",
                   "Fact 1."),
    "openbookqa, hub": ("openbookqa", openbookqa_hub, "obqa.jsonl", "choices", f"What melts at 1?{OPTIONS}", "wood",
                        "Fact 1."),
    "esnli": ("esnli", esnli, "esnli_dev.csv", "choice", f"A dog runs in yard 1.{SEGMENT_SEPARATOR}An animal moves.",
              "neutral", "Dogs are animals."),
    "esnli, hub": ("esnli", esnli_hub, "esnli.jsonl", "choice",
                   f"A dog runs in yard 1.{SEGMENT_SEPARATOR}An animal moves.", "neutral", "Dogs are animals."),
}


def write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.name.startswith("strategyqa"): # one list, as its authors have it
        path.write_text(json.dumps(rows, indent=4))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_as_published(tmp_path, form):
    recipe, row, file, kind, text, label, rationale = FORMS[form]
    data = load_data(write(tmp_path / file, [row(i) for i in range(60)]), recipe=recipe)
    assert data.report.label_kind == kind and data.report.files["train"].used == 60
    assert data.spec.rationales == bool(rationale)
    found = [r for part in data.examples.values() for r in part if r["input"] == text]
    assert len(found) == 1 and (found[0]["gold_label"], found[0]["rationale"]) == (label, rationale)


def test_every_recipe_has_a_form_here_and_another_name_than_a_data_set():
    assert {recipe for recipe, *_ in FORMS.values()} == set(RECIPES)
    assert set(RECIPES) & set(DATASETS) == {"esnli"} # one with a teacher's rationales, one with people's
    for recipe in RECIPES.values():
        assert recipe.files and recipe.citation and {"label", "rationale"} <= {*recipe.columns, "label"}


def test_pairs_without_a_gold_label_are_counted(tmp_path):
    rows = [{**esnli(i), **({"gold_label": "-"} if i < 2 else {})} for i in range(60)]
    data = load_data(write(tmp_path / "esnli_dev.csv", rows), recipe="esnli")
    assert data.report.files["train"].dropped == {"unusable gold label": 2} and data.spec.labels == NLI_LABELS


def test_all_explanations_of_people(tmp_path):
    path = write(tmp_path / "esnli_dev.csv", [esnli(i) for i in range(60)])
    data = load_run_data(RunConfig(dataset=path, recipe="esnli", explanations="all"))
    assert len(data.examples["train"]) > 2 * len(set(data.examples["train"]["input"]))
    assert len(data.examples["test"]) == len(set(data.examples["test"]["input"])) == 6


def test_what_is_said_goes_before_the_recipe(tmp_path):
    path = write(tmp_path / "train.jsonl", [{**gsm8k(i), "mine": f"{i}!"} for i in range(60)])
    data = load_data(path, recipe="gsm8k", input_template="Question: {question}", label_kind="text")
    assert data.report.label_kind == "text" and data.examples["train"]["input"][0].startswith("Question: Ada")
    data = load_data(path, recipe="gsm8k", columns={"input": "mine"})
    assert data.examples["train"]["input"][0].endswith("!")


def test_a_file_that_is_not_as_published(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"question": "1?", "solution": "2"}])
    with pytest.raises(DataError, match=r"recipe gsm8k takes the rationale from answer, .* Found: question, sol"):
        load_data(path, recipe="gsm8k")
    with pytest.raises(DataError, match=r"gsm8k is a recipe.*cotmi data PATH -p recipe gsm8k"):
        load_data("gsm8k")
    with pytest.raises(DataError, match="recipe can be said of your own data only"):
        load_data("demo", recipe="gsm8k")
