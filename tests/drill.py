"""The drill: runs that are killed at any moment, resumed, and compared with one that nobody touched.

    python tests/drill.py                 60 kills at random moments, and one at every single write (`make drill`)
    python tests/drill.py --kills 6 --writes 6 --notebooks 0

A process that has imported everything forks a child for each start of a run. A child is killed by the system when it
has used so much processor time, or kills itself at its k-th write below the outputs folder; some writes are left torn.
The table at the end counts kills by the phase in which they came, and names every difference.
"""

import argparse
import gc
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
               "COTMI_EVALUATE_EMBEDDING_MODEL": "", "ARROW_DEFAULT_MEMORY_POOL": "system"} # jemalloc has a thread

import pyarrow.parquet
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from filelock import FileLock
from tqdm import tqdm

import cotmi.evaluation.evaluator  # noqa: F401 (imported before the first fork)
from cotmi.core import read_json, read_json_lines
from cotmi.runs.execution import execute
from cotmi.runs.experiments import experiment_parameters, find_experiment, planned_config
from cotmi.runs.run_folder import Run, run_folder
from cotmi.students.loading import load_student
from cotmi.training.run_config import RunConfig, load_run_data
from cotmi.training.trainer import last_checkpoint

SHARED = {"dataset": "demo", "demo_size": 80, "demo_steps": 1, "student": "builtin:tiny", "max_steps": 8,
          "eval_steps": 2, "logging_steps": 3, "batch_size": 8, "learning_rate": 2e-3, "dropout": 0.1, "patience": 2,
          "mi_pairs": 40, "mi_bounds": "gaussian", "eval_batch_size": 16, "max_test_examples": 12,
          "max_valid_examples": 10}
CASES = {
    "finetune": {"method": "finetune", "patience": None, "max_steps": 4},
    "dss": {"method": "dss"},
    "mi infonce": {"method": "mi", "objective": "infonce", "features": "decoder", "select_by": "loss", "max_steps": 6},
    "mi paper-masked": {"method": "mi", "objective": "paper-masked", "select_by": "rationale", "max_steps": 10},
}
TIMES = {"seconds", "examples_per_second", "train/seconds", "train/examples_per_second", "ended"}


def configuration(case: str) -> RunConfig:
    return RunConfig(**{**SHARED, **CASES[case]})


# -- what a run came to ------------------------------------------------------------------------------------------------
def timeless(value: Any) -> Any:
    "A value without what a clock told."
    if isinstance(value, dict):
        return {name: timeless(each) for name, each in value.items() if name not in TIMES}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def content(path: Path) -> Any:
    "What has to be equal of a file."
    if path.suffix == ".jsonl":
        return timeless(read_json_lines(path))
    if path.suffix == ".json" and path.parent.name != "student":
        return timeless(read_json(path))
    if path.suffix == ".safetensors": # its header names things in any order
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).numpy() for name in sorted(file.keys())}
            notes = file.metadata()
        return notes, {name: (t.dtype, t.shape, hashlib.sha256(t.tobytes()).digest()) for name, t in tensors.items()}
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(folder: Path) -> dict[str, Any]:
    "Every file of a run by its name; of those that tell of the machine or the notebook only that they are there."
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    told = {"environment.json", "notebook.ipynb"}
    return {name: "there" if name in told else content(path) for name, path in files.items()} | {
        f"{p.relative_to(folder)}/": "folder" for p in folder.rglob("*") if p.is_dir()}


def differences(folder: Path, expected: dict[str, Any]) -> list[str]:
    "What is not as in the run that nobody touched, in the folder and beside it."
    got = contents(folder)
    named = [f"{name}: {'missing' if name not in got else 'left over' if name not in expected else 'differs'}"
             for name in sorted(got.keys() | expected.keys()) if got.get(name) != expected.get(name)]
    beside = {p.name for p in folder.parent.iterdir()} - {folder.name, f".{folder.name}.lock"}
    return named + [f"{name}: left beside" for name in sorted(beside)]


def phase(folder: Path) -> str:
    "How far a run had come when it was killed."
    if not (folder / "metrics.json").exists():
        return "start"
    if Run(folder).metrics.get("status") == "complete":
        return "after the end"
    if not (folder / "training.json").exists():
        newest = last_checkpoint(folder)
        state = read_json(newest / "trainer_state.json") if newest else {"global_step": 0, "max_steps": 1}
        ended = state["global_step"] >= state["max_steps"]
        return "finish" if ended or (folder / ".student").exists() else "training"
    return "finish" if (folder / "checkpoints").exists() else "evaluation"


# -- ways to die -------------------------------------------------------------------------------------------------------
def die():
    os.kill(os.getpid(), signal.SIGKILL)


class WriteCounter:
    "Counts what is written below a folder; at one of the writes the process dies, a line or a file half written."
    def __init__(self, folder: Path, at: int):
        self.folder, self.at, self.seen = os.path.realpath(folder), at, 0
        sys.addaudithook(self.hook)
        for module, name in ((torch, "save"), (safetensors.torch, "serialize_file"),
                             (safetensors.numpy, "serialize_file"), (pyarrow.parquet, "write_table")):
            self.tear(module, name)

    def count(self) -> bool:
        self.seen += 1
        return self.seen == self.at

    def hook(self, event: str, args: tuple):
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod"):
            return
        path = args[0]
        if event == "open" and not (args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if isinstance(path, int) or path is None:
            return
        path = os.fsdecode(path)
        by_folder = event in ("os.remove", "os.rmdir") and args[-1] != -1 # of a tree: relative to an open folder
        if not by_folder and not os.path.abspath(path).startswith(self.folder + os.sep) or path.endswith(".lock"):
            return
        if self.count():
            if event == "open" and args[1] == "a": # half a line
                os.write(os.open(path, os.O_WRONLY | os.O_APPEND), b'{"step": 1, "lo')
            die()

    def tear(self, module: Any, name: str):
        whole = getattr(module, name)

        def torn(*args: Any, **options: Any):
            made = whole(*args, **options)
            path = next((a for a in args if isinstance(a, (str, os.PathLike))), None)
            if path is not None and self.count():
                os.truncate(path, os.path.getsize(path) // 2)
                die()
            return made

        setattr(module, name, torn)


def start(config: RunConfig, data: Any, out: Path, seconds: float = 0, write: int = 0,
          count: Path | None = None) -> bool:
    "Start a run in a child that dies after so much processor time or at a write; whether it came to its end."
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    try:
        log = os.open(out.parent / f"{out.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        counter = WriteCounter(out, write) if write or count else None
        signal.alarm(600) # nothing here takes so long
        if seconds:
            signal.setitimer(signal.ITIMER_PROF, seconds) # its signal ends the process
        execute(config, data, out)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if counter and count:
            count.write_text(str(counter.seen))
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def warm():
    "Do once what every child would do again, and keep its garbage collector away from what it shares."
    tqdm.monitor_interval = 0 # a thread, which might hold a lock when a child is forked
    tqdm.set_lock(threading.RLock()) # the usual one is shared by all children, one that is killed over it included
    with tempfile.TemporaryDirectory() as folder:
        load_student("builtin:tiny", ["a few words to begin with"]).save(folder)
    gc.collect()
    gc.freeze()


# -- the drill ---------------------------------------------------------------------------------------------------------
class Case:
    "A configuration with its untouched run."
    def __init__(self, name: str, place: Path):
        self.name, self.place, self.config = name, place / name.replace(" ", "-"), configuration(name)
        self.data = load_run_data(self.config)
        self.place.mkdir(parents=True)
        counted, before = self.place / "writes", os.times()
        whole = start(self.config, self.data, self.place / "whole", count=counted)
        assert whole, (self.place / "whole.log").read_text()
        after = os.times()
        self.seconds = after.children_user + after.children_system - before.children_user - before.children_system
        self.writes = int(counted.read_text())
        self.expected = contents(run_folder(self.config, self.place / "whole"))
        self.killed = 0

    def kill(self, *deaths: dict[str, Any]) -> tuple[list[str], list[str]]:
        "Kill a run in one start after the other, then let it end; the phases it died in, and what differs."
        out = self.place / f"killed-{self.killed}"
        self.killed += 1
        folder, phases = run_folder(self.config, out), []
        for death in deaths:
            if start(self.config, self.data, out, **death):
                break
            phases.append(phase(folder))
        ended = start(self.config, self.data, out) # a complete run is refused, and what lay about in it is gone
        if not ended and Run(folder).status != "complete":
            return phases, ["did not end: " + Path(f"{out}.log").read_text()[-600:]]
        found = differences(folder, self.expected)
        if not found:
            shutil.rmtree(out)
        return phases, found


def random_kills(cases: list[Case], kills: int, chance: random.Random) -> list[tuple]:
    "Kills at random moments of processor time, up to three of them in one run."
    rows = []
    while kills > 0:
        case = cases[len(rows) % len(cases)]
        deaths = min(kills, chance.choice((1, 1, 2, 3)))
        phases, found = case.kill(*({"seconds": case.seconds * chance.uniform(0.02, 1)} for _ in range(deaths)))
        kills -= len(phases)
        rows.append((case.name, "moment", phases, found))
        report(rows[-1])
    return rows


def write_kills(cases: list[Case], writes: int | None, chance: random.Random) -> list[tuple]:
    "A kill at every write of every case, or at some of them."
    every = [(case, number) for case in cases for number in range(1, case.writes + 1)]
    rows = []
    for case, number in every if writes is None else sorted(chance.sample(every, writes), key=lambda each: each[1]):
        rows.append((case.name, f"write {number}", *case.kill({"write": number})))
        report(rows[-1])
    return rows


MOMENTS = { # in the life of a run, by a file that is there
    "begun": lambda folder: (folder / "metrics.json").exists(),
    "training": lambda folder: (folder / "checkpoints").exists(),
    "trained": lambda folder: (folder / "training.json").exists(),
    "evaluated": lambda folder: (folder / "predictions.parquet").exists(),
    "ended": lambda folder: Run(folder).metrics.get("status") == "complete",
}


def run_command(out: Path, moment: str = "") -> tuple[Path, bool, str]:
    "Run an experiment from the command line and kill it at a moment; its folder, whether it was, what it said."
    values = {**SHARED, **CASES["dss"]}
    words = ["run", "demo", *(word for name, value in values.items() for word in ("-p", f"{name}={value}"))]
    command = [sys.executable, "-c", "from cotmi.cli import main; main()", *words, "--out", str(out)]
    folder = run_folder(planned_config(experiment_parameters(find_experiment("demo")), values), out)
    with open(f"{out}.log", "a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while moment and process.poll() is None:
            if folder.is_dir() and MOMENTS[moment](folder):
                process.kill()
            time.sleep(0.01)
        process.wait()
    with FileLock(folder.parent / f".{folder.name}.lock").acquire(timeout=60): # its kernel sees it in a second or two
        return folder, process.returncode != 0, Path(f"{out}.log").read_text(encoding="utf-8")[-400:]


def notebook_kills(place: Path, kills: int) -> list[tuple]:
    "Kills of `cotmi run` while a kernel of its own executes the notebook, up to the last section."
    whole, fell, said = run_command(place / "notebook")
    assert not fell, said
    rows, expected = [], contents(whole)
    for number in range(kills):
        moment = list(MOMENTS)[::-1][number % len(MOMENTS)]
        folder, killed, _ = run_command(place / f"notebook-{number}", moment)
        phases = [phase(folder)] * killed
        said = run_command(place / f"notebook-{number}")[2] if killed else ""
        found = differences(folder, expected)
        rows.append(("cotmi run", moment, phases, [*found, said] if found else []))
        report(rows[-1])
    return rows


def report(row: tuple):
    print(f"{row[0]:16} {row[1]:10} {', '.join(row[2]) or 'not killed':40} {row[3] or 'equal'}", flush=True)


def table(rows: list[tuple]) -> str:
    "Kills by phase, runs that ended equal, and what was left over."
    phases = Counter(each for _, _, seen, _ in rows for each in seen)
    killed = [row for row in rows if row[2]]
    equal = sum(not found for *_, found in killed)
    left = sum("left" in each for *_, found in killed for each in found)
    lines = ["| phase | kills |", "|---|---|", *(f"| {name} | {phases[name]} |" for name in sorted(phases))]
    return "\n".join([*lines, "", f"{sum(phases.values())} kills of {len(killed)} runs; {equal} of {len(killed)} ended "
                      f"equal to the run that nobody touched; {left} files left over."])


def main(arguments: list[str] | None = None) -> int:
    "Run the drill; 1 where a run differs."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="kills at random moments")
    parser.add_argument("--writes", type=int, help="kills at writes; every single one if not given")
    parser.add_argument("--notebooks", type=int, default=6, help="kills of `cotmi run`, the notebook included")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--place", type=Path, help="where the runs go; a temporary folder if not given")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    chance, place = random.Random(options.seed), options.place or Path(tempfile.mkdtemp(prefix="drill-"))
    warm()
    cases = [Case(name, place) for name in options.cases]
    for case in cases:
        print(f"{case.name}: {case.writes} writes, {case.seconds:.1f} s of processor time", flush=True)
    rows = [*random_kills(cases, options.kills, chance), *write_kills(cases, options.writes, chance),
            *(notebook_kills(place, options.notebooks) if options.notebooks else [])]
    print("\n" + table(rows))
    return int(any(found for *_, found in rows))


if __name__ == "__main__":
    raise SystemExit(main())
