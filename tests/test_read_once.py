"""What is read, folded and named when data are loaded: once each, with the same outcome as before."""

import json

import pytest

from cotmi.data import hub
from cotmi.data.checks import check_splits, fold
from cotmi.data.labels import LABEL_KINDS
from cotmi.data.loading import identify_data, load_data


@pytest.fixture
def folder(tmp_path):
    rows = [{"input": f"Is {i} more than {i % 7}?", "label": "yes" if i > i % 7 else "no", "rationale": f"{i}."}
            for i in range(60)]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "set"


def test_a_hub_data_set_is_loaded_once(folder, monkeypatch):
    asked, load = [], hub.load_dataset
    monkeypatch.setattr(hub, "load_dataset", lambda *names: asked.append(names) or load(*names))
    data = load_data(f"hub:{folder}")
    assert len(asked) == 1 and data.fingerprint == data.report.fingerprint
    assert data.fingerprint == identify_data(f"hub:{folder}").fingerprint and len(asked) == 2


def test_the_version_of_a_split_tells_data_and_options_apart(folder):
    def versions(**options):
        return [part._fingerprint for part in load_data(str(folder), **options).examples.values()]
    first = versions()
    assert versions() == first and len(set(first)) == 3
    assert not set(first) & set(versions(max_train=9)) and not set(first) & set(versions(test_fraction=0.2))
    path = folder / "train.jsonl"
    path.write_text(path.read_text().replace("Is 3 ", "Was 3 "))
    assert not set(first) & set(versions())


def test_changed_examples_are_other_data(folder):
    data = load_data(str(folder))
    changed = data.examples["train"].map(lambda row: {"label": "no"})
    data.examples["train"] = changed
    assert data.fingerprint != data.report.fingerprint


def test_repeats_and_leaks_are_those_of_every_pair():
    inputs = {"train": ["A b.", "a b", "A b.", "c d", "(e)"], "valid": ["a  b!", "c d", "x"],
              "test": ["E", "x", "A b."]}
    labels = {split: [str(i % 2) for i in range(len(texts))] for split, texts in inputs.items()}
    checks = check_splits(inputs, labels, labels)
    order = list(inputs)
    for at, split in enumerate(order):
        assert checks[split].repeated == len(inputs[split]) - len(set(inputs[split]))
        for before in order[:at]:
            new = [text for text in inputs[split] if text not in inputs[before]]
            near = {fold(text) for text in inputs[before]}
            assert checks[split].leaked[before] == len(inputs[split]) - len(new)
            assert checks[split].nearly_leaked[before] == sum(fold(text) in near for text in new)


@pytest.mark.parametrize(("kind", "labels", "wanted"), [
    ("number", ["1,000", "1000", "x", "3", "1000.0"], ("1000", 0.6)), ("text", ["b", "a", "a ", "b"], ("b", 0.5)),
    ("text", [], ("", 0.0)), ("number", ["x", "y"], ("", 0.0))])
def test_a_majority_counts_labels_by_what_they_mean(kind, labels, wanted):
    assert LABEL_KINDS[kind].majority(labels) == wanted
