"""Data are known by their content: no spelling of a path makes another run, and no edit goes unnoticed."""

import hashlib
import json
import os
import shutil
import time

import helpers_data as made
import pytest
from datasets import Dataset as HFDataset

from cotmi.core import DataError, RunError, read_json
from cotmi.data import own
from cotmi.data.demo import DEMO_VERSION, make_demo
from cotmi.data.identity import file_digest, fingerprint_tables
from cotmi.data.loading import DATASETS, identify_data, load_data
from cotmi.runs.run_data import check_same_data, data_place
from cotmi.runs.run_folder import Run, list_runs, run_folder, runs_table, start_run
from cotmi.training.run_config import RunConfig, load_run_data

ROWS = [{"input": f"Ada has {i} cups and buys {i % 5 + 1}. How many?", "label": str(i + i % 5 + 1),
         "rationale": f"{i} + {i % 5 + 1} = {i + i % 5 + 1}."} for i in range(40)]


def write(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(path, **given):
    return RunConfig(dataset=str(path), method="dss", student="builtin:tiny", **given)


def begun(given, out):
    "A run of the data that a configuration names, as an experiment begins it."
    return start_run(given, out, report=load_run_data(given).report)


def test_every_spelling_of_a_path_is_one_run(tmp_path, monkeypatch):
    path = write(tmp_path / "work" / "cups.jsonl")
    (tmp_path / "work" / "other.jsonl").symlink_to(path)
    (tmp_path / "linked").symlink_to(tmp_path / "work")
    shutil.copy2(path, tmp_path / "cups.jsonl")
    monkeypatch.chdir(path.parent)
    spellings = ["cups.jsonl", "./cups.jsonl", str(path), "../work/cups.jsonl", "other.jsonl", "../linked/cups.jsonl",
                 "../cups.jsonl"]
    assert len({run_folder(config(name), tmp_path / "out") for name in spellings}) == 1
    loaded = load_run_data(config("cups.jsonl"))
    assert run_folder(config("elsewhere.jsonl"), tmp_path / "out", loaded.report) == run_folder(
        config("cups.jsonl"), tmp_path / "out")


def test_spellings_of_a_folder_and_of_a_local_hub_folder(tmp_path, monkeypatch):
    write(tmp_path / "set" / "train.jsonl")
    monkeypatch.chdir(tmp_path)
    for names in (["set", "./set", str(tmp_path / "set")], ["hub:set", "hub:./set", f"hub:{tmp_path / 'set'}"]):
        assert len({run_folder(config(name), "out") for name in names}) == 1
    assert run_folder(config("hub:set"), "out") != run_folder(config("set"), "out")


@pytest.mark.parametrize("edit", [
    lambda rows: [{**row, "rationale": row["rationale"][::-1]} for row in rows],
    lambda rows: rows[::-1],
    lambda rows: rows[1:],
    lambda rows: [{**rows[0], "label": "0"}, *rows[1:]],
], ids=["rationales", "order", "a row less", "a label"])
def test_edited_data_are_another_run(tmp_path, edit):
    path = write(tmp_path / "cups.jsonl")
    first = begun(config(path), tmp_path / "out").finish({"test/accuracy": 0.5})
    with pytest.raises(RunError, match="already holds the complete run"):
        begun(config(path), tmp_path / "out")
    write(path, edit(ROWS))
    second = begun(config(path), tmp_path / "out")
    assert second.path != first.path and Run(first.path).status == "complete"
    second.close()


def test_two_projects_share_an_outputs_folder(tmp_path, monkeypatch):
    places = []
    for number, project in enumerate(("one", "two")):
        write(tmp_path / project / "cups.jsonl", ROWS[number:])
        monkeypatch.chdir(tmp_path / project)
        places.append(begun(config("cups.jsonl"), tmp_path / "out").finish({}).path)
    assert places[0] != places[1] and len(list_runs(tmp_path / "out")) == 2


def test_a_split_more_is_other_data_and_a_file_that_is_not_read_is_not(tmp_path):
    folder = tmp_path / "set"
    write(folder / "train.jsonl")
    before = identify_data(str(folder)).fingerprint
    write(folder / "notes.jsonl")
    assert identify_data(str(folder)).fingerprint == before
    write(folder / "dev.jsonl", ROWS[:5])
    with_valid = identify_data(str(folder)).fingerprint
    assert with_valid != before != identify_data(str(folder), train_split="valid").fingerprint
    (folder / "dev.jsonl").rename(folder / "VALIDATION.jsonl")
    assert identify_data(str(folder)).fingerprint == with_valid


@pytest.mark.parametrize("name", ["svamp", "cqa", "esnli"])
def test_every_file_of_published_data_counts(tmp_path, name):
    {"svamp": made.svamp, "cqa": made.cqa}.get(
        name, lambda root: made.nli(root, "esnli", {"train": 40, "valid": 10, "test": 10}))(tmp_path)
    loaded, known = load_data(name, data_root=tmp_path), identify_data(name, data_root=tmp_path)
    assert loaded.fingerprint == loaded.report.fingerprint == known.fingerprint and known.path == str(tmp_path)
    seen = {known.fingerprint}
    for path in sorted((tmp_path / name).rglob("*.json")):
        path.write_text(path.read_text().replace("a", "e", 1))
        seen.add(identify_data(name, data_root=tmp_path).fingerprint)
    assert len(seen) == 1 + len(list((tmp_path / name).rglob("*.json")))


def test_what_augments_counts_where_it_is_used(tmp_path):
    made.svamp(tmp_path), made.asdiv(tmp_path)
    plain, more = (identify_data("svamp", data_root=tmp_path, augment=a).fingerprint for a in (False, True))
    path = tmp_path / "asdiv" / "llm" / "train_CoT_0.json"
    path.write_text(path.read_text().replace("jars", "cans", 1))
    assert identify_data("svamp", data_root=tmp_path).fingerprint == plain != more
    assert identify_data("svamp", data_root=tmp_path, augment=True).fingerprint != more


def test_the_demo_is_known_by_the_version_of_its_generator():
    digest = hashlib.sha256(json.dumps(make_demo(200, 3, 7, 3, 0.1), sort_keys=True).encode()).hexdigest()[:16]
    assert (DEMO_VERSION, digest) == (2, "660f3d95bbc1b890"), "other stories: DEMO_VERSION goes up"
    known = {size: identify_data("demo", demo_size=size).fingerprint for size in (60, 70)}
    assert known[60] == load_data("demo", demo_size=60).fingerprint != known[70]


def test_changed_examples_are_other_data(tmp_path):
    data = load_data(str(write(tmp_path / "cups.jsonl")))
    fewer = data.examples["train"].select(range(20))
    reworded = data.examples["train"].map(lambda row: {"rationale": row["rationale"] + "!"})
    changed = [data._replace(examples=type(data.examples)({**data.examples, "train": t})) for t in (fewer, reworded)]
    by_hand = type(data)(data.examples, data.report, data.spec)
    prints = [d.fingerprint for d in (data, by_hand, *changed)]
    assert len(set(prints)) == 4 and prints[0] == data.report.fingerprint
    again = load_data(str(tmp_path / "cups.jsonl"))
    assert type(data)(again.examples, again.report, again.spec).fingerprint == prints[1]


def test_the_pieces_of_a_table_do_not_matter():
    table = HFDataset.from_list(ROWS)
    whole, batches = ([part.with_format("arrow")[:] for part in parts] for parts in (
        [table], [table.select(range(7)), table.select(range(7, 40))]))
    import pyarrow as pa

    assert fingerprint_tables("a", {"t": whole}) == fingerprint_tables("a", {"t": [pa.concat_tables(batches)]})


def test_data_that_change_while_they_are_read_are_refused(tmp_path, monkeypatch):
    path, read = write(tmp_path / "cups.jsonl"), own.read_table

    def read_and_edit(place):
        table = read(place)
        write(path, ROWS[::-1])
        return table

    monkeypatch.setattr(own, "read_table", read_and_edit)
    with pytest.raises(DataError, match="changed while it was read"):
        load_data(str(path))


def test_a_record_without_a_fingerprint_is_known_by_its_rows(monkeypatch):
    from dataclasses import replace

    plain = replace(DATASETS["demo"], fingerprint=None)
    monkeypatch.setitem(DATASETS, "demo", plain)
    known = {size: identify_data("demo", demo_size=size).fingerprint for size in (60, 70)}
    assert known[60] != known[70] and load_data("demo", demo_size=60).fingerprint == known[60]


def test_a_file_is_hashed_once_and_a_change_is_seen(tmp_path, monkeypatch):
    import cotmi.data.identity as identity

    path, hashed = write(tmp_path / "cups.jsonl"), []
    long_ago = time.time() - 100
    os.utime(path, (long_ago, long_ago))
    digest = identity._digest
    monkeypatch.setattr(identity, "_digest", lambda place: (hashed.append(place), digest(place))[1])
    first = [file_digest(path) for _ in range(50)]
    assert len(set(first)) == 1 and len(hashed) == 1
    path.write_text(path.read_text().replace("Ada", "Ida"))  # the same size
    assert file_digest(path) != first[0]


def test_a_run_finds_its_data_from_any_folder(tmp_path, monkeypatch):
    write(tmp_path / "project" / "cups.jsonl")
    monkeypatch.chdir(tmp_path / "project")
    run = begun(config("cups.jsonl"), tmp_path / "out").finish({})
    record = read_json(run.path / "config.json")
    assert record["values"]["dataset"] == "cups.jsonl"
    assert record["data"]["path"] == str(tmp_path / "project" / "cups.jsonl")
    assert record["data"]["fingerprint"] == run.report.fingerprint
    monkeypatch.chdir(tmp_path)
    found = load_run_data(config("cups.jsonl"), data_place(Run(run.path)))
    assert found.fingerprint == run.report.fingerprint and len(found.examples["test"]) == 4
    write(tmp_path / "project" / "cups.jsonl", ROWS[::-1])
    with pytest.raises(RunError, match=r"was made with other data: .* cups is now .* Put its data back"):
        check_same_data(Run(run.path), load_run_data(config("cups.jsonl"), data_place(run)).report)


def test_published_data_are_found_again_though_the_settings_changed(tmp_path, monkeypatch):
    made.svamp(tmp_path / "root")
    monkeypatch.setenv("COTMI_PATHS_DATA", str(tmp_path / "root"))
    run = begun(config("svamp"), tmp_path / "out").finish({})
    monkeypatch.setenv("COTMI_PATHS_DATA", str(tmp_path / "nowhere"))
    again = load_run_data(config("svamp"), data_place(Run(run.path)))
    assert again.fingerprint == run.report.fingerprint


def test_an_older_run_says_nothing_of_its_data(tmp_path):
    path = write(tmp_path / "cups.jsonl")
    run = begun(config(path), tmp_path / "out").finish({"test/accuracy": 0.5})
    for name, lost in (("config.json", "data"), ("data_report.json", "fingerprint")):
        stored = read_json(run.path / name)
        del stored[lost]
        (run.path / name).write_text(json.dumps(stored))
    write(path, ROWS[::-1])
    old = Run(run.path)
    check_same_data(old, load_run_data(config(path)).report)
    assert data_place(old) == "" and old.status == "complete"
    assert not any("fingerprint" in problem or "data" in problem for problem in old.problems)
    assert runs_table(list_runs(tmp_path / "out"))["accuracy"].tolist() == [0.5]


def test_missing_data_are_named_before_a_run_begins(tmp_path, monkeypatch):
    monkeypatch.setenv("COTMI_PATHS_DATA", str(tmp_path))
    missing = {"svamp": "svamp_train.json does not exist", tmp_path / "no.csv": "no such file or folder"}
    for name, complaint in missing.items():
        with pytest.raises(DataError, match=complaint):
            run_folder(config(name), tmp_path / "out")
    assert not (tmp_path / "out").exists()
