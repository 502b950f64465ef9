"""A table of inputs that nobody can use: what is given, and the command or the call that meets it.

Every row is met in a folder of its own: `make` fills the folder, then the words follow `cotmi` in it, or `call` is
called. Rows of the group `run folder` and `judge` find a copy of a finished run at `RUN`.
"""

import base64
import gzip
import io
import json
import os
import socket
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from cotmi.training.run_config import RunConfig, parameter_names

RUN = Path("runs/demo/finished")
DEEP = 100_000  # brackets inside each other
LONG = "9" * 5000  # a number that Python does not read


@dataclass(frozen=True)
class Bad:
    "An input that must be refused."

    group: str
    name: str
    words: tuple[str, ...] = ()  # After `cotmi`; `{url}` is the address of the scripted server
    make: Callable[[Path], object] = lambda folder: None  # Fills the folder
    call: Callable[[], object] | None = None  # Instead of a command
    environ: dict[str, str] = field(default_factory=dict)
    why: str = ""  # Why it is not refused as it should be yet; empty where it is

    @property
    def id(self) -> str:
        return f"{self.group}: {self.name}"


def put(path: Path | str, content: bytes | str) -> None:
    "Write a file where perhaps another stands (which may be shared with others, so it is taken away first)."
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def writes(name: str, content: bytes | str) -> Callable[[Path], object]:
    return lambda folder: put(folder / name, content)


ROWS = [
    {
        "input": f"A shelf holds {n} jars and {n + 1} bowls. How many things?",
        "label": str(2 * n + 1),
        "rationale": f"{n} + {n + 1} = {2 * n + 1}.",
    }
    for n in range(60)
]


def csv(rows: list[dict], **options: Any) -> str:
    return pd.DataFrame(rows).to_csv(index=False, **options)


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(rows: list[dict]) -> bytes:
    return pd.DataFrame(rows).to_parquet(index=False)


def without(column: str) -> list[dict]:
    return [{k: v for k, v in row.items() if k != column} for row in ROWS]


def each(**change: Any) -> list[dict]:
    return [{**row, **change} for row in ROWS]


def zipped(*names: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in names:
            archive.writestr(name, csv(ROWS))
    return made.getvalue()


def bound_socket(path: Path) -> None:
    "A socket in the place of a file; its path has to be short."
    before = os.getcwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(before)


RANDOM = np.random.default_rng(0).bytes(4000)
HELD = {
    "csv": csv(ROWS).encode(),
    "jsonl": lines(ROWS).encode(),
    "json": json.dumps(ROWS).encode(),
    "parquet": parquet(ROWS),
}  # what is fine, by format


def broken_files() -> Iterator[tuple[str, str, bytes | str]]:
    "Name of the fault, of the file, and what is in it."
    for ending in HELD:
        yield f"empty .{ending}", f"x.{ending}", ""
        yield f"binary .{ending}", f"x.{ending}", b"\0\1\2" + RANDOM
        yield f"white space .{ending}", f"x.{ending}", " \n\n \n"
        yield f"UTF-32 .{ending}", f"x.{ending}", csv(ROWS).encode("utf-32")
    yield "header alone", "x.csv", "input,label,rationale\n"
    yield "commas alone", "x.csv", ",,\n" * 50
    yield "quote that never ends", "x.csv", 'input,label,rationale\n"one,1,why\n' + "two,2,why\n" * 40
    yield "NUL in every row", "x.csv", "input,label,rationale\n" + "a\0b,1\0,c\0\n" * 40
    yield "doubled header", "x.csv", "input,input,label,label\n" + "a,b,1,2\n" * 40
    yield "Latin-1 .csv", "x.csv", csv(each(rationale="déjà vu")).encode("latin-1")
    yield "Latin-1 .jsonl", "x.jsonl", json.dumps(ROWS[0] | {"input": "é"}, ensure_ascii=False).encode("latin-1")
    yield "UTF-16 without its mark", "x.csv", csv(ROWS).encode("utf-16-le")
    yield "cut parquet", "x.parquet", HELD["parquet"][:700]
    yield "parquet without its end", "x.parquet", HELD["parquet"][:-4]
    yield "parquet in name alone", "x.parquet", b"PAR1" + RANDOM + b"PAR1"
    yield "cut JSON list", "x.json", HELD["json"][:2000]
    yield "cut JSON line", "x.jsonl", lines(ROWS)[:90]
    yield "two JSON lists", "x.json", HELD["json"] * 2
    yield "JSON number", "x.json", "3"
    yield "JSON text", "x.json", '"input"'
    yield "JSON null", "x.json", "null"
    yield "JSON truth value", "x.json", "true"
    yield "JSON list of numbers", "x.json", "[1, 2, 3]"
    yield "JSON list of lists", "x.json", json.dumps([list(row.values()) for row in ROWS])
    yield "JSON empty list", "x.json", "[]"
    yield "JSON empty object", "x.json", "{}"
    yield "JSON empty objects", "x.jsonl", "{}\n" * 40
    yield "JSON lines of lists", "x.jsonl", lines([list(row.values()) for row in ROWS])
    yield "JSON lines of numbers", "x.jsonl", "1\n2\n3\n"
    yield "JSON single quotes", "x.jsonl", "\n".join(str(row) for row in ROWS)
    yield "deep JSON lists", "x.json", "[" * DEEP
    yield "deep JSON lists, whole", "x.json", "[" * DEEP + "]" * DEEP
    yield "deep JSON objects", "x.json", '{"a":' * DEEP
    yield "deep JSON in a line", "x.jsonl", "[" * DEEP + "]" * DEEP + "\n"
    yield "deep JSON in a cell", "x.jsonl", '{"input": ' + "[" * DEEP + "]" * DEEP + ', "label": "1"}\n'
    yield "long number in a line", "x.jsonl", f'{{"input": "a", "label": {LONG}, "rationale": "b"}}\n' * 40
    long = f'{{"input": "a", "label": {LONG}, "rationale": "b"}}'
    yield "long number in a list", "x.json", f"[{', '.join([long] * 40)}]"
    yield "web page", "x.csv", "<!doctype html><html><body>404: not found</body></html>"
    yield "web page .json", "x.json", "<!doctype html><html><body>404: not found</body></html>"
    yield "pointer to a large file", "x.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    yield "one row", "x.csv", csv(ROWS[:1])
    yield "two rows", "x.csv", csv(ROWS[:2])
    yield "no input column", "x.csv", csv(without("input"))
    yield "no label column", "x.csv", csv(without("label"))
    yield "no input .parquet", "x.parquet", parquet(without("input"))
    yield "no label .jsonl", "x.jsonl", lines(without("label"))
    yield "empty inputs", "x.csv", csv(each(input=""))
    yield "empty labels", "x.csv", csv(each(label=""))
    yield "empty rationales", "x.csv", csv(each(rationale=""))
    yield "null labels", "x.jsonl", lines(each(label=None))
    yield "NaN labels", "x.jsonl", lines(each(label=float("nan")))
    yield "objects for labels", "x.jsonl", lines(each(label={"a": {"b": 1}}))
    yield "objects for inputs", "x.jsonl", lines(each(input={"a": 1}))
    yield "one cell too many in a row", "x.csv", csv(ROWS) + "extra,1,why,more,and more\n"
    yield "unknown ending", "x.docx", HELD["csv"]
    yield "program", "x.py", "raise SystemExit('executed')"
    yield "pickle", "x.pkl", base64.b64decode("gASVHwAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjARleGl0lIWUUpQu")
    yield "no gzip", "x.csv.gz", HELD["csv"]
    yield "cut gzip", "x.csv.gz", gzip.compress(HELD["csv"])[:200]
    yield "gzip of nothing", "x.csv.gz", gzip.compress(b"")
    yield "no zip", "x.csv.zip", HELD["csv"]
    yield "zip of nothing", "x.zip", zipped()
    yield "zip of two", "x.zip", zipped("a.csv", "b.csv")
    yield "cut zip", "x.zip", zipped("a.csv")[:60]
    yield "no zstandard", "x.csv.zst", HELD["csv"]
    yield "broken XML", "x.xml", "<a><b></a>"
    yield "XML of another kind", "x.xml", "<html><body>x</body></html>"
    yield (
        "XML that laughs",
        "x.xml",
        '<!DOCTYPE z [<!ENTITY a "ha">'
        + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True))
        + "]><z>&j;</z>",
    )


def fifo(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)


def files_of_a_folder(*names: str) -> Callable[[Path], object]:
    return lambda folder: [put(folder / "set" / name, csv(ROWS)) for name in names]


def data_rows() -> Iterator[Bad]:
    for name, file, content in broken_files():
        yield Bad("data", name, ("data", file), writes(file, content))
    good = writes("x.csv", csv(ROWS))
    for name, words in {
        "missing file": ("no/such.csv",),
        "missing folder": ("no/such/",),
        "misspelt name": ("svmap",),
        "empty name": ("",),
        "hub without a name": ("hub:",),
        "hub upwards": ("hub:../x",),
        "hub of three parts": ("hub:a/b/c",),
        "hub that cannot be reached": ("hub:nobody/nothing",),
        "name of 5,000 letters": ("x" * 5000,),
        "NUL in a name": ("a\0b.csv",),
        "half a character": ("a\udc80.csv",),
        "negative samples of a kind": ("x.csv", "-p", "max_test_examples", "-1"),
        "columns that are no JSON": ("x.csv", "-p", "columns", "{input"),
        "columns that are a list": ("x.csv", "-p", "columns", '["input"]'),
        "columns of lists": ("x.csv", "-p", "columns", '{"input": ["a"]}'),
        "columns of numbers": ("x.csv", "-p", "columns", '{"input": 3}'),
        "column that the file lacks": ("x.csv", "-p", "columns", '{"input": "question"}'),
        "column of ours that is none": ("x.csv", "-p", "columns", '{"inputs": "input"}'),
        "column named by half a character": ("x.csv", "-p", "columns", '{"input": "\\ud800"}'),
        "columns nested deep": ("x.csv", "-p", "columns", "[" * 5000),
        "teacher's labels of a file without": ("x.csv", "-p", "label_source", "teacher"),
        "split that is not there": ("x.csv", "-p", "train_split", "dev"),
        "ASDiv beside a file": ("x.csv", "-p", "augment", "true"),
        "second name": ("x.csv", "more"),
        "parameter twice": ("x.csv", "-p", "seed", "1", "-p", "seed", "2"),
        "fetch of nothing known": ("fetch", "imagenet"),
        "demo of one story": ("demo", "-p", "demo_size", "1"),
    }.items():
        yield Bad("data", name, ("data", *words), good)
    for name, make, given in (
        ("pipe .csv", lambda folder: fifo(folder, "x.csv"), "x.csv"),
        ("pipe .jsonl", lambda folder: fifo(folder, "x.jsonl"), "x.jsonl"),
        ("pipe .parquet", lambda folder: fifo(folder, "x.parquet"), "x.parquet"),
        ("folder in the place of a file", lambda folder: (folder / "x.csv").mkdir(), "x.csv"),
        ("socket", lambda folder: bound_socket(folder / "x.csv"), "x.csv"),
        ("endless device", lambda folder: (folder / "x.csv").symlink_to("/dev/zero"), "x.csv"),
        ("empty device", lambda folder: (folder / "x.csv").symlink_to("/dev/null"), "x.csv"),
        ("link to itself", lambda folder: (folder / "x.csv").symlink_to("x.csv"), "x.csv"),
        ("link to nowhere", lambda folder: (folder / "x.csv").symlink_to("gone.csv"), "x.csv"),
        ("empty folder", lambda folder: (folder / "set").mkdir(), "set"),
        ("folder without train", files_of_a_folder("test.csv"), "set"),
        ("folder of other files", files_of_a_folder("notes.csv", "more.csv"), "set"),
        ("folder with a pipe for train", lambda folder: fifo(folder, "set/train.csv"), "set"),
        ("folder with a folder for train", lambda folder: (folder / "set/train.csv").mkdir(parents=True), "set"),
        ("folder with an empty train", lambda folder: put(folder / "set/train.csv", ""), "set"),
    ):
        yield Bad("data", name, ("data", given), make)


def svamp_piece(name: str, content: bytes | str) -> Callable[[Path], object]:
    "A published data set with one of its files replaced."

    def make(folder: Path) -> None:
        from helpers_data import svamp

        svamp(folder / "data")
        put(folder / "data" / "svamp" / name, content)

    return make


def published_rows() -> Iterator[Bad]:
    environ = {"COTMI_PATHS_DATA": "data"}
    for name in ("svamp", "cqa", "anli1", "esnli", "asdiv"):
        yield Bad("published data", f"{name} missing", ("data", name), environ=environ)
    for name, file, content in (
        ("rows cut", "svamp_train.json", '{"input": "a'),
        ("rows empty", "svamp_train.json", ""),
        ("rows binary", "svamp_train.json", RANDOM),
        ("rows deep", "svamp_train.json", "[" * DEEP),
        ("rows of lists", "svamp_train.json", "[1]\n[2]\n"),
        ("rows without inputs", "svamp_train.json", '{"a": 1}\n' * 9),
        ("rows with a long number", "svamp_train.json", f'{{"input": {LONG}, "label": "1"}}\n' * 9),
        ("teacher cut", "llm/train_CoT_0.json", '["It is'),
        ("teacher empty", "llm/train_CoT_0.json", ""),
        ("teacher an object", "llm/train_CoT_0.json", '{"a": 1}'),
        ("teacher deep", "llm/train_CoT_0.json", "[" * DEEP),
        ("teacher of numbers", "llm/train_CoT_0.json", "[1, 2, 3]"),
        ("teacher binary", "llm/train_CoT_0.json", RANDOM),
        ("teacher for other rows", "llm/train_CoT_0.json", '["one alone"]'),
    ):
        yield Bad("published data", name, ("data", "svamp"), svamp_piece(file, content), environ=environ)
    yield Bad("published data", "data root is a file", ("data", "svamp"), writes("data", "x"), environ=environ)
    yield Bad(
        "published data",
        "rows a pipe",
        ("data", "svamp"),
        environ=environ,
        make=lambda folder: (svamp_piece("note", "")(folder), fifo(folder, "data/svamp/svamp_train.json")),
    )


def settings_rows() -> Iterator[Bad]:
    for name, content in {
        "no section": "beta = 1\n",
        "cut section": "[train\nbeta = 1\n",
        "section twice": "[train]\n[train]\n",
        "key twice": "[train]\nbeta = 1\nbeta = 2\n",
        "key without a value": "[train]\nbeta\n",
        "unknown section": "[trian]\nbeta = 1\n",
        "unknown key": "[paths]\ndta = x\n",
        "unknown parameter": "[train]\nbetta = 1\n",
        "wrong type": "[judge]\nmax_calls = many\n",
        "wrong type of a parameter": "[train]\nbeta = much\n",
        "not a number": "[train]\nbeta = nan\n",
        "infinite": "[train]\nlearning_rate = inf\n",
        "long number": f"[judge]\nmax_calls = {LONG}\n",
        "long number of a parameter": f"[train]\nseed = {LONG}\n",
        "out of range": "[train]\nalpha = 2\n",
        "binary": RANDOM,
        "Latin-1": "[paths]\noutputs = données\n".encode("latin-1"),
        "UTF-16": "[train]\nbeta = 1\n".encode("utf-16"),
        "NUL": "[train]\nstudent = a\0b\n",
        "hundred thousand keys": "[train]\n" + "".join(f"key{i} = 1\n" for i in range(100_000)),
        "a value of a megabyte": "[train]\nstudent = " + "x" * 1_000_000 + "\n",
        "per cent in a number": "[train]\nbeta = %(alpha)s\n",
        "defaults": "[DEFAULT]\nbeta = 1\n[paths]\n",
        "negative cap": "[judge]\nmax_calls = -1\nbase_url = http://127.0.0.1:1/v1\nmodel = m\n",
    }.items():
        words = ("judge", str(RUN)) if name == "negative cap" else ("run", "demo")
        yield Bad("settings", name, words, writes("settings.ini", content))
    for name, variable, text in (
        ("unknown variable", "COTMI_PATHS_DTA", "x"),
        ("unknown variable of a run", "COTMI_TRAIN_BETTA", "1"),
        ("wrong type", "COTMI_TRAIN_BETA", "much"),
        ("nan", "COTMI_TRAIN_BETA", "nan"),
        ("seed beyond 32 bits", "COTMI_TRAIN_SEED", str(2**32)),
        ("truth value", "COTMI_TRAIN_BF16", "perhaps"),
        ("word for a cap", "COTMI_JUDGE_MAX_CALLS", "all"),
        ("half a character", "COTMI_TRAIN_STUDENT", "a\udc80"),
        ("unknown method", "COTMI_TRAIN_METHOD", "dds"),
        ("field that is none", "COTMI_TRAIN_SOURCES", "{}"),
    ):
        yield Bad("environment", name, ("run", "demo"), environ={variable: text})
    yield Bad(
        "environment", "outputs are a file", ("list",), writes("outs", "x"), environ={"COTMI_PATHS_OUTPUTS": "outs"}
    )
    yield Bad(
        "settings",
        "unset what is set",
        ("run", "demo", "-p", "patience", "none"),
        writes("settings.ini", "[train]\npatience = 3\n"),
    )


LAUGHS = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def sweep_rows() -> Iterator[Bad]:
    for name, content in {
        "empty": "",
        "comments alone": "# nothing\n",
        "a list": "- demo\n",
        "a text": "demo\n",
        "a number": "3\n",
        "cut": "experiment: [demo",
        "tabs": "experiment:\tdemo\n\tgrid: {}\n",
        "binary": RANDOM,
        "NUL": "experiment: a\0b",
        "Latin-1": "experiment: d\xe9mo".encode("latin-1"),
        "two documents": "experiment: demo\n---\nexperiment: demo\n",
        "no experiment": "grid: {seed: [0]}",
        "unknown experiment": "experiment: dmeo\n",
        "experiment a list": "experiment: [demo]\n",
        "experiment a number": "experiment: 3\n",
        "unknown key": "experiment: demo\ngird: {seed: [0]}\n",
        "key that is a number": "experiment: demo\n3: x\n",
        "key that is a list": "experiment: demo\n? [a, b]\n: x\n",
        "key that is a mapping": "? {a: 1}\n: x\n",
        "key twice": "experiment: demo\nexperiment: svamp\n",
        "name twice": "experiment: demo\ngrid: {seed: [0], seed: [1]}\n",
        "name twice in a run": "experiment: demo\nruns: [{seed: 0, seed: 1}]\n",
        "grid a list": "experiment: demo\ngrid: [seed]\n",
        "grid of a number": "experiment: demo\ngrid: {seed: 0}\n",
        "grid of nothing": "experiment: demo\ngrid: {seed: []}\n",
        "grid of null": "experiment: demo\ngrid: {seed: null}\n",
        "grid of a mapping": "experiment: demo\ngrid: {seed: {a: 1}}\n",
        "runs a mapping": "experiment: demo\nruns: {seed: 0}\n",
        "run a number": "experiment: demo\nruns: [3]\n",
        "run null": "experiment: demo\nruns: [null]\n",
        "parameters a list": "experiment: demo\nparameters: [seed]\n",
        "unknown parameter": "experiment: demo\ngrid: {sed: [0]}\n",
        "wrong type": "experiment: demo\ngrid: {seed: [a]}\n",
        "a list for a number": "experiment: demo\ngrid: {seed: [[0]]}\n",
        "nan": "experiment: demo\ngrid: {beta: [.nan]}\n",
        "infinite": "experiment: demo\ngrid: {beta: [.inf]}\n",
        "truth value for a number": "experiment: demo\ngrid: {seed: [true]}\n",
        "date": "experiment: demo\ngrid: {student: [2020-01-01]}\n",
        "date that is none": "experiment: demo\ngrid: {student: [2020-13-41]}\n",
        "long number": f"experiment: demo\ngrid: {{seed: [{LONG}]}}\n",
        "set": "experiment: demo\ngrid: {student: [!!set {a}]}\n",
        "bytes": "experiment: demo\ngrid: {student: [!!binary aGk=]}\n",
        "Python object": "experiment: !!python/object/apply:os.system [exit]\n",
        "unknown tag": "experiment: !mine demo\n",
        "unknown anchor": "experiment: *gone\n",
        "contains itself": "experiment: demo\nparameters: &p {a: *p}\n",
        "list in itself": "experiment: demo\nruns: &r [*r]\n",
        "merge of itself": "experiment: demo\nparameters: &p {<<: *p}\n",
        "laughs": f"{LAUGHS}experiment: demo\n",
        "deep": "experiment: " + "[" * 600,
        "deep and whole": "a: " + "[" * 600 + "]" * 600,
        "too many runs": f"experiment: demo\ngrid: {{seed: {[*range(101)]}, split_seed: {[*range(100)]}}}\n",
        "many more": "experiment: demo\ngrid: {"
        + ", ".join(
            f"{n}: {[*range(1, 99)]}"
            for n in ("seed", "split_seed", "max_steps", "batch_size", "eval_steps", "patience", "warmup_steps")
        )
        + "}\n",
        "two megabytes": "# " + "x" * 2_000_000 + "\nexperiment: demo\n",
        "trains nothing": "experiment: compare\n",
        "bad value in its last run": "experiment: demo\nruns: [{seed: 0}, {seed: 1}, {alpha: 3}]\n",
        "half a character": 'experiment: demo\ngrid: {student: ["a\\uD800"]}\n',
    }.items():
        yield Bad("sweep", name, ("sweep", "s.yaml"), writes("s.yaml", content))
    yield Bad("sweep", "missing", ("sweep", "s.yaml"))
    yield Bad("sweep", "folder", ("sweep", "s.yaml"), lambda folder: (folder / "s.yaml").mkdir())
    yield Bad("sweep", "pipe", ("sweep", "s.yaml"), lambda folder: fifo(folder, "s.yaml"))
    yield Bad(
        "sweep",
        "own cap",
        ("sweep", "s.yaml", "--max-runs", "2"),
        writes("s.yaml", "experiment: demo\ngrid: {seed: [0, 1, 2]}\n"),
    )


def value_rows() -> Iterator[Bad]:
    "Every parameter of a run with values that it cannot have."
    defaults = RunConfig().to_dict()
    kinds = {f: str(RunConfig.__dataclass_fields__[f].type) for f in parameter_names()}
    for name, kind in kinds.items():
        wrong: list[str] = []
        if "int" in kind or "float" in kind:
            wrong = ["nan", "inf", "-inf", "-1", "1e400", LONG, "many", "[1]", "0x10", "1,5"]
            wrong += ["1.5", "1e300"] if "int" in kind else ["-1e12"]
        elif kind == "bool":
            wrong = ["perhaps", "2", "[true]", "nan"]
        elif RunConfig.__dataclass_fields__[name].metadata["names"] or "Literal" in kind:
            wrong = [f"{defaults[name]}x", "-", "a b;c", *([] if "None" in kind else [""])]
        for value in wrong:
            yield Bad("value", f"{name} {value[:12] or 'empty'}", ("run", "demo", "-p", f"{name}={value}"))
    for name, value in {
        "batch_size": True,
        "beta": [1.0],
        "seed": 1.5,
        "dataset": 3,
        "columns": "{",
        "student": None,
        "bf16": "maybe",
        "method": 7,
        "learning_rate": float("nan"),
        "alpha": -0.1,
        "columns ": {},
        "max_steps": 10**400,
        "gamma": float("inf"),
        "report_to": ["wandb"],
        "mi_bounds": ("smile",),
    }.items():
        yield Bad(
            "value",
            f"in Python, {name} {str(value)[:12]}",
            call=lambda name=name, value=value: RunConfig(
                **{"columns" if name == "columns " else name: {1: "a"} if name == "columns " else value}
            ),
        )
    for name, pairs in {
        "unknown parameter": ["betta=1"],
        "empty name": ["=1"],
        "no value": ["beta"],
        "twice": ["beta=1", "beta=2"],
        "overrides": ["overrides={}"],
        "half a character": ["student=a\udc80"],
        "NUL": ["dataset=a\0b"],
        "long path": ["student=" + "x/" * 4000],
        "long name": ["dataset=" + "é" * 200],
        "white space": ["dataset= "],
        "unknown tracker": ["report_to=tensorbord"],
        "tracker that is not installed": ["report_to=kubeflow"],
        "one of two trackers": ["report_to=tensorboard,kubeflow"],
        "unknown bound": ["mi_bounds=infonce,smil"],
        "no bound": ["mi_bounds=,"],
        "own objective that is not there": ["objective=nowhere.objectives:mine"],
        "own objective without an attribute": ["objective=math:"],
        "own objective of another kind": ["objective=math:pi"],
        "own objective that the module lacks": ["objective=math:tau_of_mine"],
        "own critic of another kind": ["critic=math:pi"],
        "own critic that is not there": ["critic=nowhere:mine"],
        "own bound of another kind": ["mi_bounds=math:pi"],
        "features that do not fit": ["features=encoder"],
        "tokens without length batches": ["tokens_per_batch=500", "batching=random"],
        "surrounded by dots": ["critic=..a:b"],
        "option of papermill": ["kernel_name=bash"],
        "a method of others": ["method=lora"],
        "a list for samples": ["samples=[1]"],
    }.items():
        yield Bad("value", name, ("run", "demo", *(word for pair in pairs for word in ("-p", pair))))
    for name, code in {
        "raises": "raise RuntimeError('no luck')",
        "exits": "raise SystemExit(3)",
        "broken": "def (",
        "needs what is not there": "import nowhere_at_all",
    }.items():
        yield Bad(
            "value",
            f"own objective whose module {name}",
            ("run", "demo", "-p", f"objective=mine_{name[:3]}:it"),
            writes(f"mine_{name[:3]}.py", code),
        )
    yield Bad("value", "unknown experiment", ("run", "dmeo"))
    for name, content in {
        "cut": '{"cells": [',
        "empty": "",
        "list": "[]",
        "deep": "[" * DEEP,
        "binary": RANDOM,
        "without cells": "{}",
        "of format 3": '{"worksheets": []}',
    }.items():
        yield Bad("value", f"notebook {name}", ("run", "own.ipynb"), writes("own.ipynb", content))


def replaced(name: str, content: bytes | str) -> Callable[[Path], object]:
    return lambda folder: put(folder / RUN / name, content)


def removed(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / RUN / name).unlink() for name in names]


def piped(name: str) -> Callable[[Path], object]:
    return lambda folder: fifo(folder, str(RUN / name))


def edited(name: str, edit: Callable[[dict], object]) -> Callable[[Path], object]:
    "A JSON file of the run after a change."

    def make(folder: Path) -> None:
        path = folder / RUN / name
        value = json.loads(path.read_text())
        edit(value)
        put(path, json.dumps(value))

    return make


def weights(edit: Callable[[dict], object]) -> Callable[[Path], object]:
    "The weights of the student after a change."

    def make(folder: Path) -> None:
        path = folder / RUN / "student" / "model.safetensors"
        tensors = load_file(path)
        edit(tensors)
        path.unlink()
        save_file(tensors, path, {"format": "pt"})

    return make


def cut(name: str, share: float = 0.5) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        content = (folder / RUN / name).read_bytes()
        put(folder / RUN / name, content[: int(len(content) * share)])

    return make


def predictions(edit: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path = folder / RUN / "predictions.parquet"
        put(path, edit(pd.read_parquet(path)).to_parquet(index=False))

    return make


WHOLE = "student/model.safetensors"


def run_rows() -> Iterator[Bad]:
    evaluated: dict[str, Callable[[Path], object]] = {
        "no config": removed("config.json"),
        "config empty": replaced("config.json", ""),
        "config cut": cut("config.json"),
        "config a list": replaced("config.json", "[1, 2]"),
        "config a number": replaced("config.json", "3"),
        "config an empty object": replaced("config.json", "{}"),
        "config deep": replaced("config.json", "[" * DEEP),
        "config with a long number": replaced("config.json", f'{{"values": {{"seed": {LONG}}}}}'),
        "config binary": replaced("config.json", RANDOM),
        "config a pipe": piped("config.json"),
        "config values a list": replaced("config.json", '{"values": [], "sources": {}}'),
        "config values empty": replaced("config.json", '{"values": {}, "sources": {}}'),
        "config of an unknown method": edited("config.json", lambda c: c["values"].update(method="lora")),
        "config with a text for a number": edited("config.json", lambda c: c["values"].update(seed="many")),
        "config of unknown data": edited("config.json", lambda c: c["values"].update(dataset="gone.csv")),
        "config cut by a byte": cut("config.json", 0.995),
        "no student": lambda folder: (folder / RUN / "student").rename(folder / "student"),
        "student a file": lambda folder: (
            (folder / RUN / "student").rename(folder / "student"),
            put(folder / RUN / "student", "x"),
        ),
        "student without config": removed("student/config.json"),
        "student config cut": cut("student/config.json"),
        "student config a list": replaced("student/config.json", "[]"),
        "student config empty": replaced("student/config.json", ""),
        "student config deep": replaced("student/config.json", "[" * DEEP),
        "student of another type": edited("student/config.json", lambda c: c.update(model_type="bert")),
        "student of no type": edited("student/config.json", lambda c: c.pop("model_type")),
        "student of an unknown type": edited("student/config.json", lambda c: c.update(model_type="nowhere")),
        "student wider than its weights": edited("student/config.json", lambda c: c.update(d_model=c["d_model"] * 2)),
        "student deeper than its weights": edited("student/config.json", lambda c: c.update(num_layers=9)),
        "student config with a text for a number": edited("student/config.json", lambda c: c.update(d_model="many")),
        "no weights": removed(WHOLE),
        "weights empty": replaced(WHOLE, ""),
        "weights cut": cut(WHOLE),
        "weights cut by a byte": cut(WHOLE, 0.9999),
        "weights binary": replaced(WHOLE, RANDOM),
        "weights a text": replaced(WHOLE, "weights"),
        "weights a pipe": piped(WHOLE),
        "a weight missing": weights(lambda t: t.pop(sorted(t)[0])),
        "a weight too many": weights(lambda t: t.update(extra=np.zeros(3, np.float32))),
        "a weight of another shape": weights(
            lambda t: t.update({k: v[:1] for k, v in t.items() if v.ndim == 2 and "lm_head" in k})
        ),
        "a weight renamed": weights(lambda t: t.update(other=t.pop(sorted(t)[-1]))),
        "no weight at all": weights(lambda t: t.clear()),
        "no tokenizer": removed("student/tokenizer.json", "student/tokenizer_config.json"),
        "no tokenizer.json": removed("student/tokenizer.json"),
        "tokenizer cut": cut("student/tokenizer.json"),
        "tokenizer empty": replaced("student/tokenizer.json", ""),
        "tokenizer a list": replaced("student/tokenizer.json", "[]"),
        "tokenizer deep": replaced("student/tokenizer.json", "[" * DEEP),
        "tokenizer config cut": cut("student/tokenizer_config.json"),
        "tokenizer config a list": replaced("student/tokenizer_config.json", "[]"),
    }
    for name, make in evaluated.items():
        yield Bad("run folder", name, ("evaluate", str(RUN)), make)
    for command in ("evaluate", "judge", "compare", "list", "dashboard"):
        words = ("--model", "m", "--base-url", "{url}/good/v1") if command == "judge" else ()
        yield Bad("run folder", f"{command} of nothing", (command, "runs/gone", *words))
        yield Bad("run folder", f"{command} of a file", (command, "x", *words), writes("x", "x"))
        yield Bad(
            "run folder", f"{command} of an empty folder", (command, "x", *words), lambda folder: (folder / "x").mkdir()
        )
    yield Bad("run folder", "compare of a run without metrics", ("compare", "runs"), removed("metrics.json"))
    yield Bad("run folder", "compare of a run with cut metrics", ("compare", "runs"), cut("metrics.json"))
    yield Bad("run folder", "compare in two forms", ("compare", "runs", "--latex", "--csv"))
    yield Bad("run folder", "compare saved on a file", ("compare", "runs", "--save", "x"), writes("x", "x"))
    yield Bad(
        "run folder",
        "a complete run again",
        call=None,
        words=("run", "demo", "--out", "runs"),
        make=lambda folder: complete_again(folder),
    )


def complete_again(folder: Path) -> None:
    "The finished run under the name that the plain demo would have."
    from cotmi.runs.experiments import check_parameters, experiment_parameters, find_experiment, planned_config
    from cotmi.runs.run_folder import run_folder

    defaults = experiment_parameters(find_experiment("demo"))
    place = run_folder(planned_config(defaults, check_parameters([], defaults)), "runs")
    (folder / RUN).rename(folder / place)
    put(folder / place / "notebook.ipynb", "{}")


def judged_rows() -> Iterator[Bad]:
    asked = ("judge", str(RUN), "--limit", "1", "--max-calls", "2", "--model", "m")
    here = (*asked, "--base-url", "{url}/good/v1")
    for name, make in {
        "no predictions": removed("predictions.parquet"),
        "predictions empty": replaced("predictions.parquet", ""),
        "predictions cut": cut("predictions.parquet"),
        "predictions binary": replaced("predictions.parquet", RANDOM),
        "predictions a pipe": piped("predictions.parquet"),
        "predictions JSON": replaced("predictions.parquet", "[]"),
        "predictions of others": predictions(lambda table: pd.DataFrame({"a": [1, 2]})),
        "predictions without rows": predictions(lambda table: table.iloc[:0]),
        "predictions without rationales": predictions(lambda table: table.assign(generated_rationale=None)),
    }.items():
        yield Bad("judge", name, here, make)
    for name, url in {
        "no scheme": "localhost:8000/v1",
        "another scheme": "ftp://127.0.0.1/v1",
        "no host": "http://",
        "half an IPv6 address": "http://[::1/v1",
        "a bad IPv6 address": "http://[12345::zz]/v1",
        "a port beyond 65,535": "http://127.0.0.1:99999/v1",
        "a port that is no number": "http://127.0.0.1:abc/v1",
        "a host with a space": "http://exa mple/v1",
        "an empty address": "",
        "a control character": "http://127.0.0.1/\x07",
        "a host too long": f"http://{'a' * 300}.example/v1",
        "nobody listens": "http://127.0.0.1:9/v1",
    }.items():
        yield Bad("judge", name, (*asked, "--base-url", url))
    for mode in (
        "401",
        "403",
        "404",
        "400",
        "page",
        "nothing",
        "deep",
        "list",
        "no_choices",
        "null_choices",
        "null_content",
        "binary",
        "long_number",
        "elsewhere",
        "cut",
        "prose",
    ):
        yield Bad("judge", f"answers {mode}", (*asked, "--base-url", f"{{url}}/{mode}/v1"))
    for name, key in {
        "key with other letters": "schlüssel",
        "key of two lines": "one\ntwo",
        "key of half a character": "k\udc80",
    }.items():
        yield Bad("judge", name, here, environ={"COTMI_JUDGE_API_KEY": key})
    yield Bad("judge", "no endpoint", ("judge", str(RUN)))
    yield Bad("judge", "no model", ("judge", str(RUN), "--base-url", "{url}/good/v1"))
    yield Bad(
        "judge",
        "no call allowed",
        ("judge", str(RUN), "--limit", "1", "--max-calls", "0", "--model", "m", "--base-url", "{url}/good/v1"),
    )


def load(name: str) -> Callable[[], object]:
    def call() -> object:
        from cotmi.students.loading import load_student

        return load_student(name, texts=["one two"])

    return call


def student_rows() -> Iterator[Bad]:
    for name, given in {
        "missing folder": "./no/such",
        "hub that cannot be reached": "nobody/nothing",
        "unknown builtin": "builtin:huge",
        "builtin of no name": "builtin:",
        "misspelt builtin": "builtin-tiny",
        "empty": "",
        "NUL": "a\0b",
        "half a character": "a\udc80",
        "three parts": "a/b/c",
        "upwards": "../..",
        "a name with a space": "a b",
        "name of 5,000 letters": "x" * 5000,
    }.items():
        yield Bad("student", name, call=load(given))
    for name, content in {"a text file": "weights", "a binary file": RANDOM}.items():
        yield Bad("student", name, call=load("x"), make=writes("x", content))
    yield Bad("student", "an empty folder", call=load("./x"), make=lambda folder: (folder / "x").mkdir())
    yield Bad("student", "a folder with a pipe", call=load("./x"), make=lambda folder: fifo(folder, "x/config.json"))
    yield Bad(
        "student", "a folder of another model", call=load("./x"), make=writes("x/config.json", '{"model_type": "gpt2"}')
    )
    yield Bad("student", "a config alone", call=load("./x"), make=writes("x/config.json", '{"model_type": "t5"}'))
    yield Bad(
        "student",
        "code of its own",
        call=load("./x"),
        make=lambda folder: (
            put(folder / "x/config.json", '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}'),
            put(folder / "x/mine.py", "raise SystemExit('executed')"),
        ),
    )


def bad_inputs() -> list[Bad]:
    "All of them."
    return [
        *data_rows(),
        *published_rows(),
        *settings_rows(),
        *sweep_rows(),
        *value_rows(),
        *run_rows(),
        *judged_rows(),
        *student_rows(),
    ]
