"""Files of rows: what was written in any form comes back, and nothing is shifted, guessed or left out unsaid."""

import csv
import gzip
import io
import json
import time
import zipfile

import pyarrow as pa
import pytest
from datasets import ClassLabel, Features, Value
from datasets import Dataset as HFDataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

import cotmi.data.reading
from cotmi.core import DataError
from cotmi.data.arithmetic import evaluate_equation, same_value, spaced_equation
from cotmi.data.cells import as_text, cell_text, show_cell
from cotmi.data.completions import parse_anli, parse_cqa, parse_esnli, parse_svamp
from cotmi.data.loading import load_data
from cotmi.data.reading import read_table, whole_items
from cotmi.data.split_files import name_splits, split_files
from cotmi.data.stated_answers import arrives_at_choice, arrives_at_value, last_value, named_choice

QUIET = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ROWS = [{"input": f"Ada has {i} cups and buys 2. How many?", "label": str(i + 2), "rationale": f"{i} + 2 = {i + 2}."}
        for i in range(30)]
NAMES = list(ROWS[0])


# -- whatever is written comes back ------------------------------------------------------------------------------------

def as_csv(rows, delimiter=",", newline="\n", quoting=csv.QUOTE_MINIMAL):
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator=newline, quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), min_size=1, max_size=30)
CELLS = st.lists(st.fixed_dictionaries({"input": TEXT, "label": TEXT, "n": TEXT}), min_size=1, max_size=5)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-10 ** 30, 10 ** 30), st.floats(allow_nan=False), TEXT,
                   st.lists(TEXT))


@QUIET
@given(CELLS, st.sampled_from([",", ";", "\t", "|"]), st.sampled_from(["\n", "\r\n"]),
       st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
@example([{"input": '"', "label": ",;|\t", "n": "\n\n"}], ",", "\n", "utf-8")
def test_delimited_text_comes_back(tmp_path, rows, delimiter, newline, encoding):
    path = tmp_path / "a.csv"
    path.write_bytes(as_csv(rows, delimiter, newline, csv.QUOTE_ALL).encode(encoding))
    assert read_table(path).rows == rows


@QUIET
@given(st.lists(st.fixed_dictionaries({"input": TEXT, "label": VALUES}), min_size=1, max_size=5),
       st.sampled_from([None, 1, 4]), st.booleans(), st.booleans(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_json_comes_back(tmp_path, rows, indent, listed, ascii_only, encoding):
    path = tmp_path / "a.json"
    parts = [json.dumps(row, indent=indent, ensure_ascii=ascii_only) for row in rows]
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only) if listed else "\n".join(parts)
    path.write_bytes(text.encode(encoding))
    assert read_table(path).rows == rows


@QUIET
@given(CELLS)
def test_parquet_comes_back(tmp_path, rows):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)
    assert read_table(path).rows == rows


@QUIET
@given(st.one_of(VALUES, st.binary(), st.dictionaries(TEXT, TEXT), st.lists(VALUES), st.dates(), st.decimals()))
def test_every_cell_is_text_or_unusable(value):
    for join in (False, True):
        text = cell_text(value, join)
        assert text is None or not text.startswith(("[", "{", "b'")) or isinstance(value, (str, list))
    assert isinstance(show_cell(value), str)
    if isinstance(value, float) and cell_text(value):
        assert float(as_text(value)) == value


@QUIET
@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40).map(str.strip)
                .filter(bool), min_size=1, max_size=4))
def test_xml_comes_back(tmp_path, texts):
    from xml.sax.saxutils import escape

    problems = "".join(f"<Problem ID='{i}'><Body>{escape(t)}</Body><Answer>1</Answer></Problem>"
                       for i, t in enumerate(texts))
    path = write(tmp_path / "a.xml", f"<Set>{problems}</Set>")
    assert [row["Body"] for row in read_table(path).rows] == texts


# -- a table of small files: what is read, used and dropped ------------------------------------------------------------

def zipped(name, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def packed(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def arrow(rows, **types):
    sink, table = pa.BufferOutputStream(), pa.Table.from_pylist(rows)
    for name, kind in types.items():
        column = pa.array([None if row[name] is None else row[name] for row in rows], kind)
        table = table.set_column(table.column_names.index(name), name, column)
    parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def with_classes():
    sink = io.BytesIO()
    rows = {"input": [f"Is {i} odd?" for i in range(30)], "label": [i % 2 for i in range(30)],
            "rationale": ["So."] * 30}
    HFDataset.from_dict(rows, Features({"input": Value("string"), "label": ClassLabel(names=["no", "yes"]),
                                        "rationale": Value("string")})).to_parquet(sink)
    return sink.getvalue()


def changed(number, **cells):
    return [{**row, **cells} if i < number else row for i, row in enumerate(ROWS)]


PROBLEMS = "<Problem ID='{i}'><input>{input}</input><label>{label}</label><rationale>{rationale}</rationale></Problem>"
# name: file, its content, {reason: rows} over all splits, label kind, a piece of the notes
FILES = {
    "JSON list on one line": ("a.json", json.dumps(ROWS), {}, "number", ""),
    "JSON list, indented": ("a.jsonl", json.dumps(ROWS, indent=2), {}, "number", ""),
    "JSON lines with blank lines": ("a.json", "\n" + as_lines(ROWS).replace("\n", "\n\n"), {}, "number", ""),
    "JSON objects, indented": ("a.json", "\n".join(json.dumps(r, indent=2) for r in ROWS), {}, "number", ""),
    "CSV": ("a.csv", as_csv(ROWS), {}, "number", ""),
    "CSV of semicolons": ("a.csv", as_csv(ROWS, ";"), {}, "number", "parted by semicolons"),
    "TSV": ("a.tsv", as_csv(ROWS, "\t"), {}, "number", ""),
    "TSV of commas": ("a.tsv", as_csv(ROWS), {}, "number", "parted by commas"),
    "a comma at each line's end": ("a.csv", as_csv(ROWS).replace("\n", ",\n").replace("rationale,", "rationale"), {},
                                   "number", "30 rows end in a separator"),
    "an empty last column": ("a.csv", as_csv(ROWS).replace("\n", ",\n"), {}, "number", "30 rows end in a separator"),
    "short rows": ("a.csv", as_csv(ROWS).replace(",0 + 2 = 2.", "").replace(",1 + 2 = 3.", ""), {"empty rationale": 2},
                   "number", ""),
    "labels that look like gaps": ("a.csv", as_csv([{**r, "label": ("None", "NA", "007")[i % 3]}
                                                    for i, r in enumerate(ROWS)]), {}, "choice", ""),
    "UTF-16": ("a.csv", as_csv(ROWS).encode("utf-16"), {}, "number", ""),
    "UTF-8 with a mark": ("a.csv", as_csv(ROWS).encode("utf-8-sig"), {}, "number", ""),
    "Windows line ends": ("a.csv", as_csv(ROWS, newline="\r\n"), {}, "number", ""),
    "gzip": ("a.jsonl.gz", gzip.compress(as_lines(ROWS).encode(), mtime=0), {}, "number", ""),
    "zip": ("a.zip", zipped("rows/a.csv", as_csv(ROWS)), {}, "number", ""),
    "Zstandard": ("a.jsonl.zst", packed(as_lines(ROWS).encode()), {}, "number", ""),
    "parquet, gzipped": ("a.parquet.gz", gzip.compress(arrow(ROWS), mtime=0), {}, "number", ""),
    "XML": ("a.xml", f"<All>{''.join(PROBLEMS.format(i=i, **r) for i, r in enumerate(ROWS))}</All>", {}, "number", ""),
    "whole numbers as floats with gaps": ("a.parquet", arrow(
        [{**r, "label": None if i < 3 else float(i)} for i, r in enumerate(ROWS)], label=pa.float64()),
        {"unusable gold label": 3}, "number", ""),
    "class labels in parquet": ("a.parquet", with_classes(), {}, "choice", ""),
    "NaN in JSON": ("a.json", json.dumps(changed(4, rationale=float("nan"))), {"empty rationale": 4}, "number", ""),
    "null in JSON": ("a.json", json.dumps(changed(4, label=None)), {"unusable gold label": 4}, "number", ""),
    "lists of sentences": ("a.jsonl", as_lines([{**r, "rationale": ["First.", r["rationale"]]} for r in ROWS]), {},
                           "number", ""),
    "lists with one answer": ("a.jsonl", as_lines([{**r, "label": [r["label"]]} for r in ROWS]), {}, "number", ""),
    "lists with two answers": ("a.jsonl", as_lines(changed(5, label=["1", "2"])), {"unusable cell": 5}, "number", ""),
    "objects for a rationale": ("a.jsonl", as_lines(changed(5, rationale={"text": "So."})), {"unusable cell": 5},
                                "number", ""),
    "truth values": ("a.jsonl", as_lines([{**r, "label": i % 2 == 0} for i, r in enumerate(ROWS)]), {}, "choice", ""),
    "half of a surrogate pair": ("a.jsonl", as_lines(changed(2, input="\ud83d")), {"unusable cell": 2}, "number", ""),
}


@pytest.mark.parametrize("name", FILES)
def test_what_becomes_of_a_file(tmp_path, name):
    file, content, dropped, kind, note = FILES[name]
    data = load_data(str(write(tmp_path / file, content)))
    lost = {}
    for part in data.report.splits.values():
        for counts in (part.dropped, part.kept):
            for reason, count in counts.items():
                lost[reason] = lost.get(reason, 0) + count
    assert lost == dropped and data.spec.label_kind == kind
    assert sum(part.read for part in data.report.splits.values()) == 30
    assert note in " ".join(data.report.notes) and bool(note) == bool(data.report.notes)
    rows = [row for part in data.examples.values() for row in part]
    assert not any(text.startswith(("[", "{", "nan")) for row in rows for text in row.values() if isinstance(text, str))
    assert all(row["rationale"].endswith((".", "null")) for row in rows if row["rationale"])
    if kind == "choice":
        assert set(data.spec.labels) in ({"007", "NA", "None"}, {"no", "yes"}, {"true", "false"})


@pytest.mark.parametrize(("file", "content", "complaint"), [
    ("a.csv", as_csv(ROWS).replace("2 = 4.", "2 = 4.,checked"), r"row 3 \(line 4\): 4 cells, but the header names 3"),
    ("a.csv", as_csv(ROWS) + '"an open quote,1,so\n', "every quote closes"),
    ("a.csv", "input,input,label\n1,2,3\n", "two columns 'input'"),
    ("a.csv", as_csv(changed(1, input="na\xefve")).encode("latin1"), "Convert it, .*: iconv -f windows-1252"),
    ("a.jsonl", as_lines(ROWS).encode("utf-16le"), "iconv -f utf-16le -t utf-8 a.jsonl"),
    ("a.json", json.dumps({"rows": ROWS}), "one JSON object of lists or objects .keys: rows"),
    ("a.json", json.dumps(ROWS)[:-40], "row 30: not valid JSON"),
    ("a.json", '[{"input": "1"}, 2]', "row 2: a JSON object is expected, found '2'"),
    ("a.json", "[" * 100_000, "row 1: not valid JSON"),
    ("a.jsonl", as_lines(ROWS) + '{"input": ' + "[" * 100_000, "row 31: not valid JSON .it is nested too deeply"),
    ("a.xml", "<!DOCTYPE a [<!ENTITY b 'bbbb'>]><a><p><input>&b;</input></p></a>", "has a DOCTYPE"),
    ("a.xml", "<a><p>", "cannot be read as XML"),
    ("a.parquet", b"PAR1 and no more", "cannot be read as parquet"),
    ("a.csv.gz", gzip.compress(as_csv(ROWS).encode(), mtime=0)[:40], "cannot be read as CSV"),
    ("a.csv.gz", b"no gzip", "cannot be read as CSV"),
    ("a.zip", b"no zip", "cannot be read as rows"),
    ("a.gz", gzip.compress(b"1", mtime=0), "does not say what is packed"),
    ("a.zip", zipped("a.exe", "1"), "suffix"),
    ("a.csv", "", "holds no rows"),
    ("a.json", "[]", "holds no rows"),
])
def test_what_cannot_be_read_is_named(tmp_path, file, content, complaint):
    with pytest.raises(DataError, match=complaint) as raised:
        load_data(str(write(tmp_path / file, content)))
    assert "\n" not in str(raised.value) and len(str(raised.value)) <= 400


def test_an_archive_of_several_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.csv", "1"), archive.writestr("b.csv", "1"), archive.writestr("__MACOSX/a.csv", "1")
    with pytest.raises(DataError, match=r"holds 2 files \(a.csv, b.csv\); expected one"):
        load_data(str(tmp_path / "a.zip"))


@pytest.mark.parametrize("suffix", ["gz", "zip", "zst"])
def test_what_unpacks_without_end_is_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(cotmi.data.reading, "MAX_UNPACKED", 100_000)
    content = b"input,label,rationale\n" + b"0,0,0\n" * 100_000
    made = {"gz": gzip.compress(content, mtime=0), "zip": zipped("a.csv", content), "zst": packed(content)}[suffix]
    with pytest.raises(DataError, match="unpacks to more than 100,000 bytes"):
        load_data(str(write(tmp_path / f"a.csv.{suffix}", made)))


# -- splits ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("names", [
    ("train.jsonl", "val.jsonl", "test.jsonl"), ("Train.jsonl", "DEV.jsonl", "TEST.jsonl"),
    ("train-00000-of-00001.jsonl", "validation-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"),
    ("data/train-00000-of-00001.jsonl", "data/valid.jsonl", "data/test.jsonl"),
    ("my_train.jsonl", "my_eval.jsonl", "my_test.jsonl"), ("train/a.jsonl", "evaluation/a.jsonl", "testing/a.jsonl"),
])
def test_a_folder_with_any_names_of_the_hub(tmp_path, names):
    for name, rows in zip(names, (ROWS[:20], ROWS[20:24], ROWS[24:]), strict=True):
        write(tmp_path / "set" / name, as_lines(rows))
    data = load_data(str(tmp_path / "set"))
    assert {split: len(part) for split, part in data.examples.items()} == {"train": 20, "valid": 4, "test": 6}
    assert data.report.notes == ()


def test_shards_are_read_in_order(tmp_path):
    for number, rows in enumerate((ROWS[:10], ROWS[10:15], ROWS[15:])):
        write(tmp_path / "set" / f"train-{number:05d}-of-00003.jsonl", as_lines(rows))
    data = load_data(str(tmp_path / "set"))
    assert data.report.files["train"].read == 30
    (tmp_path / "set" / "train-00001-of-00003.jsonl").unlink()
    with pytest.raises(DataError, match="2 of the 3 shards of train; number 00001 is missing"):
        load_data(str(tmp_path / "set"))


def test_nothing_is_passed_over_in_silence(tmp_path):
    for name in ("train.jsonl", "extra.jsonl", "notes.txt", "README.md"):
        write(tmp_path / "set" / name, as_lines(ROWS))
    assert load_data(str(tmp_path / "set")).report.notes == ("set: not read: extra.jsonl, notes.txt.",)
    write(tmp_path / "set" / "training.csv", as_csv(ROWS))
    with pytest.raises(DataError, match="more than one file for train: train.jsonl, training.csv"):
        load_data(str(tmp_path / "set"))


def test_a_folder_of_a_partition_adds_no_column(tmp_path):
    folder = tmp_path / "lang=en"
    write(folder / "train.parquet", arrow(ROWS))
    assert list(read_table(folder / "train.parquet").rows[0]) == NAMES


def test_a_hub_data_set_keeps_the_names_of_its_classes(tmp_path):
    write(tmp_path / "set" / "train.parquet", with_classes())
    data = load_data(f"hub:{tmp_path / 'set'}")
    assert data.spec.labels == ("no", "yes") and data.spec.label_kind == "choice"


def test_a_loading_script_gets_an_answer(tmp_path):
    write(tmp_path / "quiz" / "quiz.py", "raise SystemExit")
    with pytest.raises(DataError, match="is a loading script, .*code is run here.*convert/parquet") as raised:
        load_data(f"hub:{tmp_path / 'quiz'}")
    assert len(str(raised.value)) <= 400


def test_samples_of_unusable_cells_show_them(tmp_path):
    data = load_data(str(write(tmp_path / "a.jsonl", as_lines(changed(5, label=["1", "2"])))))
    shown = [sample["text"] for part in data.report.files.values() for sample in part.samples["unusable cell"]]
    assert any('label: ["1", "2"]' in text for text in shown)


# -- time --------------------------------------------------------------------------------------------------------------

NASTY = ("(", ")", "-", " ", "1", "1,", "=", "the answer is", "The answer is (", "So the answer is", "Answer:", "\n",
         "a", "(a)", "1.", "$ ", " and ")
PARSERS = {
    "parse_svamp": lambda t: parse_svamp(f"Why. The answer is {t}"), "parse_cqa": lambda t: parse_cqa(
        f"Why. So the answer is {t}"), "parse_anli": parse_anli, "parse_esnli": parse_esnli,
    "whole completion": parse_svamp, "evaluate_equation": evaluate_equation, "same_value": lambda t: same_value(t, t),
    "spaced_equation": spaced_equation, "last_value": last_value, "value after =": lambda t: last_value(f"= {t}"),
    "arrives_at_value": lambda t: arrives_at_value(t, "7"), "named_choice": lambda t: named_choice(t, ["a", "answer"]),
    "arrives_at_choice": lambda t: arrives_at_choice(t, "is", ["is", "1"]), "cell_text": cell_text,
    "whole_items": lambda t: whole_items(f"[{t}"),
    "name_splits": lambda t: name_splits([t, f"train{t}"]),
}


def seconds(parse, text):
    start = time.process_time()
    parse(text)
    return time.process_time() - start


@pytest.mark.parametrize("name", PARSERS)
def test_parsers_take_time_in_proportion(name):
    "Twice as long a text takes at most three times as long; below 30 ms a clock tells nothing."
    parse = PARSERS[name]
    for unit in NASTY:
        text = (unit * 300_000)[:300_000]
        half, whole = (min(seconds(parse, part) for _ in range(2)) for part in (text[:150_000], text))
        for _ in range(3):  # a busy machine makes one measurement long, never all of them short
            if whole <= 3 * half + 0.03:
                break
            half, whole = max(half, seconds(parse, text[:150_000])), min(whole, seconds(parse, text))
        assert whole <= 3 * half + 0.03, f"{name} on {unit!r}: {half:.3f} s, then {whole:.3f} s"


def test_a_folder_name_of_many_marks_is_read_at_once(tmp_path):
    write(tmp_path / ("-" * 120) / f"train{'-_. ' * 40}.csv", as_csv(ROWS))
    assert list(split_files(tmp_path / ("-" * 120)).splits) == ["train"]
