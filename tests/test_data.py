"""Loading: every dataset in one shape, every bad row counted, every bad file named."""

import json
from collections import Counter

import helpers_data as made
import pandas as pd
import pytest
from datasets import Dataset as HFDataset

import cotmi.data.hub
from cotmi.core import DataError
from cotmi.data.completions import PROBLEMS, Parsed, parse_anli, parse_cqa, parse_esnli, parse_svamp, split_completion
from cotmi.data.data_report import DataReport, Row
from cotmi.data.dataset import Dataset, Question, RawData
from cotmi.data.examples import COLUMNS, SEGMENT_SEPARATOR, LoadedData, make_splits
from cotmi.data.labels import LABEL_KINDS, get_label_kind
from cotmi.data.loading import DATASETS, load_data
from cotmi.data.published import load_published


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "A data root with every dataset."
    root = tmp_path_factory.mktemp("data")
    made.svamp(root)
    made.cqa(root)
    made.nli(root, "anli1", {"valid": 30, "test": 12})
    made.nli(root, "esnli", {"train": 40, "valid": 10, "test": 10})
    made.asdiv(root)
    return root


def load(root, name, **options) -> LoadedData:
    return load_data(name, data_root=root, **({"train_split": "valid"} if name == "anli1" else {}), **options)


def sizes(data):
    return {split: len(part) for split, part in data.examples.items()}


@pytest.mark.parametrize("name", ["demo", "svamp", "cqa", "anli1", "esnli"])
@pytest.mark.parametrize("label_source", ["gold", "teacher"])
def test_every_dataset_has_the_same_shape(root, name, label_source):
    data = load(root, name, label_source=label_source, **({"demo_size": 60} if name == "demo" else {}))
    assert list(data.examples) == ["train", "valid", "test"]
    for split, part in data.examples.items():
        assert tuple(part.column_names) == COLUMNS
        assert all(part["input"]) and all(part["gold_label"]) and all(part["label"])
        assert len(set(part["id"])) == len(part)
        source = "teacher_label" if label_source == "teacher" and split == "train" else "gold_label"
        assert part["label"][:] == part[source][:]
        if split != "test":
            assert all(part["rationale"])
        kind = data.spec.label_kind
        if kind == "choice":
            assert set(part["label"]) <= set(data.spec.labels)
        assert all(bool(choices) == (kind == "choices") for choices in part["choices"])
    assert data.spec is DATASETS[name]


@pytest.mark.parametrize("name", ["svamp", "cqa", "anli1", "esnli"])
@pytest.mark.parametrize("label_source", ["gold", "teacher"])
def test_reports_add_up(root, name, label_source):
    data = load(root, name, label_source=label_source, max_train=12)
    for split, part in data.report.splits.items():
        assert part.read == part.used + sum(part.dropped.values()) + part.left_out
        assert part.used == len(data.examples[split])
        assert set(part.problems) <= set(PROBLEMS)
        assert set(part.samples) == set(part.problems)
        assert all(0 < len(s) <= 5 and all(x["id"] and x["text"] for x in s) for s in part.samples.values())
    assert sum(part.used for part in data.report.files.values()) == sum(sizes(data).values())
    assert sum(part.read for part in data.report.files.values()) == sum(p.read for p in data.report.splits.values())
    assert not data.report.splits["test"].dropped


def test_svamp_counts_each_failure_by_kind(root):
    gold, teacher = load(root, "svamp"), load(root, "svamp", label_source="teacher")
    kinds = {"no marker": 5, "not an equation": 5, "truncated": 5, "empty rationale": 5, "part of an equation": 5}
    assert gold.report.files["train"].problems == kinds == teacher.report.files["train"].problems
    assert gold.report.files["train"].dropped == {"no marker": 5, "empty rationale": 5}
    assert teacher.report.splits["train"].dropped.keys() == kinds.keys()
    assert teacher.report.splits["valid"].dropped.keys() <= {"no marker", "empty rationale"}
    assert gold.report.files["train"].teacher_label_empty == 10
    assert gold.report.files["train"].teacher_correct == 40 - 4 * 5
    assert sum(gold.report.splits["test"].kept.values()) == 6 and sizes(gold)["test"] == 10


def test_cqa_labels_and_layout(root):
    data = load(root, "cqa")
    row = next(r for r in data.examples["train"] if r["id"] == "train3")
    assert row["input"] == ("Where is thing 3?\nAnswer Choices:\n(a) forest\n(b) kitchen\n(c) harbour\n(d) attic\n"
                            "(e) washington d.c")
    assert row["label"] == row["teacher_label"] == "attic"
    assert data.report.files["test"].kept == {"several answers": 1, "empty label": 1, "label outside the choices": 1}


def test_nli_segments_and_labels(root):
    data = load(root, "esnli")
    rows = {r["id"]: r for r in data.examples["train"]}
    assert rows["esnli-train-4"]["input"] == f"Box 4 is blue.{SEGMENT_SEPARATOR}It has colour 4."
    assert rows["esnli-train-4"]["label"] == "neutral"
    assert sizes(data) == {"train": 39, "valid": 9, "test": 10}
    assert data.report.files["train"].dropped == {"no marker": 1}
    assert data.report.files["train"].kept == {"label outside the choices": 1}
    assert data.report.majority("test") == ("entailment", 0.4)


def test_valid_of_anli_is_trained_on_and_held_out_from(root):
    data = load(root, "anli1")
    assert sizes(data) == {"train": 26, "valid": 3, "test": 12}
    assert list(data.report.files) == ["valid", "test"]
    assert any(note.startswith("valid: 30 of the 1,000") for note in data.report.notes)
    with pytest.raises(DataError, match=r"anli1_train.json does not exist.*train_split='valid' trains on it"):
        load_data("anli1", data_root=root)
    with pytest.raises(DataError, match="train_split is 'test'; allowed are train, valid"):
        load_data("anli1", data_root=root, train_split="test")


def test_valid_is_held_out_as_published(root):
    "The rows of valid are those that train_test_split gives for the whole file, whatever is dropped later."
    rows = [json.loads(line) for line in (root / "svamp" / "svamp_train.json").read_text().splitlines()]
    parts = HFDataset.from_list(rows).train_test_split(test_size=0.1, seed=0)
    usable = {row["input"] for part in load(root, "svamp").examples.values() for row in part}
    data = load(root, "svamp").examples
    assert data["valid"]["input"][:] == [t for t in parts["test"]["input"] if t in usable]
    assert data["train"]["input"][:] == [t for t in parts["train"]["input"] if t in usable]


def test_augmenting_svamp_adds_to_train_only(root):
    plain, more = load(root, "svamp"), load(root, "svamp", augment=True)
    assert sizes(more) == {**sizes(plain), "train": sizes(plain)["train"] + 10}
    assert more.report.files["asdiv"].dropped == {"unusable gold label": 2}
    added = [r for r in more.examples["train"] if r["id"].startswith("asdiv")]
    assert added[0]["label"] == "( 1.0 * 3.0 )" and added[0]["input"] == "There are 1 jars of 3.\nHow many?"
    with pytest.raises(DataError, match="augment=True adds ASDiv to svamp; cqa"):
        load(root, "cqa", augment=True)


def test_augmenting_without_asdiv_says_how_to_get_it(tmp_path):
    made.svamp(tmp_path)
    with pytest.raises(DataError, match="asdiv_train.json does not exist"):
        load(tmp_path, "svamp", augment=True)


def test_samples_follow_the_seed_and_test_does_not(root):
    def ids(split, **options):
        return load(root, "cqa", max_train=8, max_test=4, **options).examples[split]["id"][:]

    assert ids("train", seed=1) == ids("train", seed=1) != ids("train", seed=2)
    assert ids("test", seed=1) == ids("test", seed=2) and len(ids("test")) == 4
    full, sample = load(root, "cqa").examples["train"]["id"][:], ids("train", seed=3)
    assert [i for i in full if i in sample] == sample  # in the order of the split
    with pytest.raises(DataError, match="at least 1"):
        load(root, "cqa", max_train=0)


def test_reports_survive_json_and_show_themselves(root):
    report = load(root, "svamp").report
    again = DataReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report and str(again) == str(report)
    frame = report.to_frame()
    assert frame.loc["file train", "read"] == 40 and frame.loc["test", "used"] == 10
    assert report.problem_frame().loc["no marker", ["train dropped", "valid dropped"]].sum() == 5
    page = report._repr_html_()
    assert "part of an equation" in page and "<script" not in page


def test_what_a_teacher_says_cannot_write_html(tmp_path):
    made.svamp(tmp_path)
    path = tmp_path / "svamp" / "llm" / "train_CoT_0.json"
    said = json.loads(path.read_text())
    said[0] = "<script>alert(1)</script>"
    path.write_text(json.dumps(said))
    report = load(tmp_path, "svamp").report
    assert any("<script>" in s["text"] for s in report.files["train"].samples["no marker"])
    assert "<script" not in report._repr_html_()


# -- damaged files -----------------------------------------------------------------------------------------------------

def test_a_teacher_file_cut_in_the_middle(tmp_path):
    made.svamp(tmp_path)
    path = tmp_path / "svamp" / "llm" / "train_CoT_0.json"
    items = json.loads(path.read_text())
    path.write_text(json.dumps(items)[:len(json.dumps(items[:7])) + 20])
    with pytest.raises(DataError, match=r"train_CoT_0.json, row 8: not valid JSON.*cotmi data fetch dss"):
        load(tmp_path, "svamp")


def test_a_row_file_cut_in_the_middle(tmp_path):
    made.svamp(tmp_path)
    path = tmp_path / "svamp" / "svamp_test.json"
    path.write_text("\n".join(path.read_text().splitlines()[:5])[:-9])
    with pytest.raises(DataError, match=r"svamp_test.json, row 5: not valid JSON"):
        load(tmp_path, "svamp")


@pytest.mark.parametrize(("pieces", "complaint"), [
    ((500, 499, 100), "train_CoT_1.json holds 499, expected 500"),
    ((500, 500), "train_CoT_2.json is missing, expected 100"),
    ((500, 500, 99), "train_CoT_2.json holds 99, expected 100"),
    ((500, 500, 101), "train_CoT_2.json holds 101, expected 100"),
    ((500, 500, 100, 3), "train_CoT_3.json holds 3, expected none"),
])
def test_the_short_piece_is_named(tmp_path, pieces, complaint):
    made.svamp(tmp_path, train=1100)
    folder = tmp_path / "svamp" / "llm"
    for path in folder.glob("train_CoT_*.json"):
        path.unlink()
    for k, count in enumerate(pieces):
        (folder / f"train_CoT_{k}.json").write_text(json.dumps(["Why. The answer is (1 + 1)."] * count))
    with pytest.raises(DataError, match=f"svamp train has 1,100 rows but .* teacher completions: .*{complaint}"):
        load(tmp_path, "svamp")


def test_pieces_of_another_size_are_fine_when_they_add_up(tmp_path):
    made.svamp(tmp_path)
    folder = tmp_path / "svamp" / "llm"
    said = json.loads((folder / "train_CoT_0.json").read_text())
    (folder / "train_CoT_0.json").write_text(json.dumps(said[:13]))
    (folder / "train_CoT_1.json").write_text(json.dumps(said[13:]))
    assert load(tmp_path, "svamp").report.files["train"].read == 40


@pytest.mark.parametrize(("remove", "complaint"), [
    ("svamp_test.json", r"svamp_test.json does not exist.*data root.*COTMI_PATHS_DATA.*`cotmi data fetch dss` gets it"),
    ("llm/train_CoT_0.json", r"train_CoT_0.json does not exist: the teacher's completions of svamp train are missing"),
])
def test_a_missing_file_is_named_with_the_way_to_get_it(tmp_path, remove, complaint):
    made.svamp(tmp_path)
    (tmp_path / "svamp" / remove).unlink()
    with pytest.raises(DataError, match=complaint):
        load(tmp_path, "svamp")


def test_the_data_root_comes_from_the_settings(root, monkeypatch):
    monkeypatch.setenv("COTMI_PATHS_DATA", str(root))
    assert sizes(load_data("cqa")) == sizes(load(root, "cqa"))
    monkeypatch.setenv("COTMI_PATHS_DATA", str(root / "nowhere"))
    with pytest.raises(DataError, match="nowhere/cqa/cqa_train.json does not exist"):
        load_data("cqa")


@pytest.mark.parametrize(("text", "complaint"), [
    ("", "holds no rows"),
    ("\n\n", "holds no rows"),
    ('["a"]\n', "row 1: a JSON object is expected"),
    ('{"question": "a", "label": "1"}\n', r"no column 'input'. Found: question, label. Expected: input, label"),
    (b"\xff\xfe{}", "row 1: not valid JSON"),
    (b"\xe9{}", "not UTF-8 text: byte 0xe9 stands in it. Convert it"),
])
def test_a_file_of_something_else(tmp_path, text, complaint):
    made.svamp(tmp_path)
    path = tmp_path / "svamp" / "svamp_train.json"
    path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
    with pytest.raises(DataError, match=complaint):
        load(tmp_path, "svamp")


def test_one_bad_row_is_counted_not_raised(tmp_path):
    rows = [{"input": f"What is {i} + 1?", "label": f"( {i} + 1 )"} for i in range(20)]
    rows[3], rows[4], rows[5] = {"label": "( 1 )"}, {"input": "What?", "label": None}, {"input": "What?", "label": "x"}
    said = [f"One more. The answer is ({i} + 1)." for i in range(20)]
    said[6] = None
    for split in ("train", "test"):
        made.write_rows(tmp_path, "svamp", split, rows, said)
    data = load(tmp_path, "svamp")
    assert data.report.files["train"].dropped == {"empty input": 1, "unusable gold label": 2, "no marker": 1}
    assert data.report.splits["test"].dropped == {"empty input": 1, "unusable gold label": 2}
    assert data.report.splits["test"].kept == {"no marker": 1}
    assert any("test inputs are in train too" in note for note in data.report.notes)


def test_no_usable_row_is_an_error_with_its_reasons(tmp_path):
    rows = [{"input": f"What is {i} + 1?", "label": f"( {i} + 1 )"} for i in range(20)]
    for split in ("train", "test"):
        made.write_rows(tmp_path, "svamp", split, rows, ["Well."] * 20)
    with pytest.raises(DataError, match=r"svamp train: no usable row of 18 \(18 no marker\)"):
        load(tmp_path, "svamp")


@pytest.mark.parametrize(("name", "options", "complaint"), [
    ("svmap", {}, "unknown.*Did you mean 'svamp'"),
    ("nowhere/mine.jsonl", {}, "no such file or folder"),
    ("demo", {"label_source": "golden"}, "label_source is 'golden'; allowed are gold, teacher"),
    ("demo", {"columns": {"input": "x"}}, "columns can be said of your own data only"),
    ("demo", {"train_split": "valid"}, "train_split of the demo is 'valid'"),
    ("demo", {"demo_size": 60, "valid_fraction": 0.0}, "must lie between 0 and 1"),
    ("demo", {"demo_size": 1}, "No rows can be held out"),
])
def test_wrong_arguments(name, options, complaint):
    with pytest.raises(DataError, match=complaint):
        load_data(name, **options)


# -- own data ----------------------------------------------------------------------------------------------------------

ROWS = [{"question": f"Is {i} odd?", "answer": "yes" if i % 2 else "no", "why": f"{i} halves are {i / 2}.",
         "key": f"k{i}"} for i in range(40)]
NAMES = {"input": "question", "label": "answer", "rationale": "why", "id": "key"}


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_one_file_of_your_own(tmp_path, suffix):
    data = load_data(write_table(tmp_path / f"my data{suffix}", ROWS), columns=NAMES)
    assert sizes(data) == {"train": 32, "valid": 4, "test": 4}
    assert data.spec.name == "my-data" and data.spec.labels == ("no", "yes") and data.spec.label_kind == "choice"
    row = data.examples["train"][0]
    assert ROWS[int(row["id"][1:])] == {"question": row["input"], "answer": row["label"], "why": row["rationale"],
                                        "key": row["id"]}
    assert data.report.splits["train"].teacher_accuracy is None
    assert data.report.to_frame()["teacher correct"].isna().all()


def test_a_folder_of_splits(tmp_path):
    for name, rows in (("train.jsonl", ROWS[:20]), ("validation.csv", ROWS[20:25]), ("test.parquet", ROWS[25:])):
        write_table(tmp_path / "set" / name, rows)
    data = load_data(str(tmp_path / "set"), columns=NAMES)
    assert sizes(data) == {"train": 20, "valid": 5, "test": 15}
    assert data.examples["test"]["id"][:] == [r["key"] for r in ROWS[25:]]
    assert sizes(load_data(str(tmp_path / "set"), columns=NAMES, train_split="valid")) == {
        "train": 4, "valid": 1, "test": 15}


def test_ids_that_repeat_are_told_apart(tmp_path):
    rows = [{**row, "key": f"k{i // 2}"} for i, row in enumerate(ROWS)]
    data = load_data(write_table(tmp_path / "mine.jsonl", rows), columns=NAMES)
    ids = data.examples["train"]["id"][:]
    assert len(set(ids)) == len(ids) and any(i.endswith("#2") for i in ids)
    assert any("ids came before" in note for note in data.report.notes)


def test_rows_without_any_label_are_not_right(tmp_path):
    rows = [{**row, "said": row["answer"]} for row in ROWS]
    rows[:10] = [{**row, "answer": "", "said": ""} for row in ROWS[:10]]
    data = load_data(write_table(tmp_path / "mine.jsonl", rows), columns={**NAMES, "teacher_label": "said"})
    assert data.report.files["train"].teacher_correct == 30 and data.report.files["train"].teacher_label_empty == 10


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path):
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8-sig")
    (tmp_path / "mine.csv").write_text(pd.DataFrame(ROWS).to_csv(index=False), encoding="utf-8-sig")
    for suffix in (".jsonl", ".csv"):
        assert sizes(load_data(str(tmp_path / f"mine{suffix}"), columns=NAMES))["train"] == 32


def test_a_folder_with_a_test_file_only(tmp_path):
    write_table(tmp_path / "set" / "test.jsonl", ROWS)
    with pytest.raises(DataError, match="a test split only"):
        load_data(str(tmp_path / "set"), columns=NAMES)


def test_labels_kinds_are_guessed_or_given(tmp_path):
    numbers = [{"input": f"{i}?", "label": i, "rationale": "so"} for i in range(30)]
    free = [{"input": f"{i}?", "label": f"place {i}", "rationale": "so"} for i in range(30)]
    listed = [{"input": f"{i}?", "label": "ab"[i % 2], "rationale": "so", "choices": "a | b"} for i in range(30)]
    assert load_data(write_table(tmp_path / "n.jsonl", numbers)).spec.label_kind == "number"
    assert load_data(write_table(tmp_path / "t.jsonl", free)).spec.label_kind == "text"
    data = load_data(write_table(tmp_path / "c.csv", listed))
    assert data.spec.label_kind == "choices" and data.examples["train"]["choices"][0] == ["a", "b"]
    assert load_data(str(tmp_path / "n.jsonl"), label_kind="text").spec.label_kind == "text"
    with pytest.raises(DataError, match="label_kind is 'numbers'.*Did you mean 'number'"):
        load_data(str(tmp_path / "n.jsonl"), label_kind="numbers")


def test_own_teacher_labels_are_checked_and_can_be_trained_on(tmp_path):
    rows = [{"input": f"{i}?", "label": str(i), "rationale": "so", "teacher_label": str(i + (i % 4 == 0))}
            for i in range(40)]
    rows[1]["teacher_label"], rows[2]["teacher_label"], rows[3]["rationale"] = "", "several", " "
    path = write_table(tmp_path / "mine.csv", rows)
    gold, teacher = load_data(path), load_data(path, label_source="teacher")
    assert gold.report.files["train"].problems == {"empty label": 1, "not an equation": 1, "empty rationale": 1}
    assert gold.report.files["train"].teacher_correct == 40 - 10 - 2
    assert sum(teacher.report.splits["train"].dropped.values()) > sum(gold.report.splits["train"].dropped.values())
    assert all(r["label"] == r["teacher_label"] for r in teacher.examples["train"])
    with pytest.raises(DataError, match="has no teacher labels to train on"):
        load_data(write_table(tmp_path / "plain.jsonl", ROWS), columns=NAMES, label_source="teacher")


def test_a_missing_rationale_column(tmp_path):
    path = write_table(tmp_path / "mine.jsonl", [{k: v for k, v in r.items() if k != "why"} for r in ROWS])
    part = {"input": "question", "label": "answer"}
    with pytest.raises(DataError, match=r"no column 'rationale'. Found: question, answer, key.*null.*-p method"):
        load_data(path, columns=part)
    data = load_data(path, columns={**part, "rationale": None})
    assert not data.spec.rationales and set(data.examples["train"]["rationale"]) == {""}
    assert data.report.notes == ("There are no rationales: only method finetune can train on this.",)


@pytest.mark.parametrize(("columns", "complaint"), [
    ({"input": "question"}, "no column 'label', 'rationale'. Found: question, answer, why, key"),
    ({**NAMES, "input": "qestion"}, "maps 'input' to 'qestion'.*Did you mean 'question'"),
    ({**NAMES, "lable": "answer"}, "'lable'; allowed are.*Did you mean 'label'"),
    ({**NAMES, "label": None}, "input and label cannot be left out"),
])
def test_wrong_column_maps(tmp_path, columns, complaint):
    with pytest.raises(DataError, match=complaint):
        load_data(write_table(tmp_path / "mine.jsonl", ROWS), columns=columns)


@pytest.mark.parametrize(("name", "content", "complaint"), [
    ("mine.jsonl", b"", "holds no rows"),
    ("mine.csv", b"", "holds no rows"),
    ("mine.csv", b"input,label,rationale\n", "holds no rows"),
    ("mine.parquet", b"PAR1 and then nothing", "cannot be read as parquet"),
    ("mine.txt", b"input", "suffix of .*allowed are .jsonl, .json, .csv, .tsv, .parquet, .xml, .gz"),
    ("mine.jsonl", b'{"input": "1"', "row 1: not valid JSON"),
    ("mine.jsonl", b'{"input": ' + b"[" * 200_000, "row 1: not valid JSON"),
])
def test_unreadable_files_of_your_own(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        load_data(str(tmp_path / name))


def test_text_cells_of_csv_stay_text(tmp_path):
    rows = [{"input": f"{i}?", "label": ("None", "NA", "007")[i % 3], "rationale": "null"} for i in range(30)]
    data = load_data(write_table(tmp_path / "mine.csv", rows))
    assert data.spec.labels == ("007", "NA", "None") and set(data.examples["train"]["rationale"]) == {"null"}


def test_a_hub_dataset_is_loaded_by_datasets(tmp_path):
    "`datasets` takes a local folder for an id, so its real loading can be tried without a network."
    write_table(tmp_path / "set" / "train.jsonl", ROWS[:30])
    write_table(tmp_path / "set" / "test.jsonl", ROWS[30:])
    data = load_data(f"hub:{tmp_path / 'set'}", columns=NAMES)
    assert sizes(data) == {"train": 27, "valid": 3, "test": 10}


def test_a_hub_dataset_with_a_configuration(monkeypatch):
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        return {"train": HFDataset.from_list(ROWS[:30]), "validation": HFDataset.from_list(ROWS[30:])}

    monkeypatch.setattr(cotmi.data.hub, "load_dataset", load_dataset)
    monkeypatch.setattr(cotmi.data.hub, "why_not_on_hub", lambda name, kind: "")
    data = load_data("hub:owner/name:plain", columns=NAMES)
    assert set(asked) == {("owner/name", "plain")}
    assert sizes(data) == {"train": 27, "valid": 10, "test": 3} and data.spec.name == "owner-name-plain"


def test_an_unreachable_hub_names_the_two_ways_on():
    with pytest.raises(DataError, match="'owner/nowhere' cannot be loaded.*Two ways on.*path of a folder, or"):
        load_data("hub:owner/nowhere", columns=NAMES)


# -- completions -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("parse", [parse_svamp, parse_cqa, parse_anli, parse_esnli])
def test_no_completion_breaks_a_parser(parse):
    pieces = ["", " ", "The answer is", "So the answer is", "(a)", "(1 + 1)", "(", ")", ".", "Q:", "Premise:",
              "Answer:", "neutral", "neutra", " and ", "\n\n", "x"]
    texts = [a + b + c for a in pieces for b in pieces for c in pieces]
    found = Counter(parse(text).problem for text in texts)
    assert set(found) <= {"", *PROBLEMS}
    assert all(bool(p.label and p.rationale) for p in map(parse, texts) if not p.problem)


@pytest.mark.parametrize(("kind", "predicted", "gold", "same"), [
    ("equation", "( 84.0 / 2.0 )", "42", True), ("equation", "84 / 2", "84 / 4", False), ("equation", "x", "x", False),
    ("number", "7.0", "7", True), ("number", "seven", "7", False), ("text", " Rome ", "Rome", True),
    ("choice", "neutra", "neutral", False), ("choices", "", "attic", False),
])
def test_same_label(kind, predicted, gold, same):
    assert get_label_kind(kind).equal(predicted, gold) is same


@pytest.mark.parametrize("kind", ["equation", "number"])
def test_labels_that_differ_in_the_eighth_digit_are_two(kind):
    known = get_label_kind(kind)
    assert known.key("1.0000001") != known.key("1.0000002")
    assert known.majority(["1.0000001", "1.0000002", "1.0000002"]) == ("1.0000002", pytest.approx(2 / 3))
    assert known.majority(["( 0.1 + 0.2 )", "0.3", "7"]) == ("0.3", pytest.approx(2 / 3))


@pytest.mark.parametrize("kind", LABEL_KINDS)
def test_what_no_label_is_counts_nowhere(kind):
    known = get_label_kind(kind)
    assert known.key(" ") is None and not known.is_valid(" ") and known.value(" ") is None
    assert known.majority([]) == ("", 0.0) and known.majority(["", "7"]) == ("7", 0.5)
    assert known.right(["7", None, "8"], ["7", "7", "7"]) == [True, False, False]


@pytest.mark.parametrize(("kind", "text", "candidates", "valid"), [
    ("choices", " attic", ["attic"], True), ("choices", "Attic", ["attic"], False), ("text", "any words", [], True),
    ("number", "7.0", ["7", "8"], True), ("number", "9", ["7", "8"], False), ("equation", "3 +", [], False),
])
def test_is_valid(kind, text, candidates, valid):
    assert get_label_kind(kind).is_valid(text, candidates) is valid


def test_a_misspelt_kind_names_the_nearest():
    with pytest.raises(DataError, match="label_kind is 'equations'.*Did you mean 'equation'"):
        get_label_kind("equations")


# -- a data set more ---------------------------------------------------------------------------------------------------

def test_one_record_adds_a_published_data_set(tmp_path, monkeypatch):
    "As CONTRIBUTING says: facts, `question` and `parse` in one record; nothing else has to know."
    def question(row):
        return Question(row["number"], row["riddle"], row["solution"])

    def parse(completion):
        rationale, answer, problem = split_completion(completion, "Hence", "Riddle:")
        return Parsed(rationale, answer.removesuffix("."), problem)

    riddles = Dataset(
        "riddles", "Riddles", load_published, label_kind="text", splits=("train", "test"), sizes={"train": 20},
        fields=("riddle", "solution"), question=question, parse=parse, licence="CC0", augmented_by=DATASETS["asdiv"])
    monkeypatch.setitem(DATASETS, "riddles", riddles)
    rows = [{"number": f"r{i}", "riddle": f"What has {i} legs?", "solution": f"beast {i}"} for i in range(30)]
    said = [f"It walks on {i}. Hence beast {i - i % 3}.\n\nRiddle: more" for i in range(30)]
    said[3] = "No idea."
    made.write_rows(tmp_path, "riddles", "train", rows[:20], said[:20])
    made.write_rows(tmp_path, "riddles", "test", rows[20:], said[20:])
    made.asdiv(tmp_path)
    data = load_data("riddles", data_root=tmp_path)
    assert sizes(data) == {"train": 17, "valid": 2, "test": 10} and data.spec is riddles
    assert data.report.files["train"].dropped == {"no marker": 1} and data.report.files["train"].teacher_correct == 6
    assert sizes(load_data("riddles", data_root=tmp_path, augment=True))["train"] == 27
    with pytest.raises(DataError, match="label_kind can be said of your own data only; the form of riddles is known"):
        load_data("riddles", data_root=tmp_path, label_kind="number")


def test_a_data_set_of_another_layout_brings_its_loader(monkeypatch):
    def count(dataset, options):
        rows = [Row(str(i), f"{i} + 1?", str(i + 1), "One more.", str(i + 1), (), "", "") for i in range(50)]
        return RawData(dataset, {"train": rows}, make_splits({"train": rows}, options), ["Counted."])

    monkeypatch.setitem(DATASETS, "count", Dataset("count", "Counting", count, label_kind="number"))
    data = load_data("count", test_fraction=0.2, max_train=30)
    assert sizes(data) == {"train": 30, "valid": 4, "test": 10} and data.report.notes == ("Counted.",)
    assert data.report.majority("test")[1] == 0.1
