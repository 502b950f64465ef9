"""Estimates of mutual information on the 40 tasks of bmi ("Beyond Normal", NeurIPS 2023), beside other estimators.

    python -m benchmarks.mi_tasks --bmi-python FOLDER/bin/python    all tasks, two samples each, and wide features
    python -m benchmarks.mi_tasks --samples 0 --only spiral         one sample of the tasks with spiral in their name
    python -m benchmarks.mi_tasks --bounds infonce,smile,nwj        other bounds too
    python -m benchmarks.mi_tasks --peers                           also bmi's own InfoNCE, torch-mist's and its SMILE

bmi needs jax, so its samples are drawn in an environment of its own, whose Python `--bmi-python` names (torch-mist's is
that of `benchmarks.mi_side_by_side`, made on the first call):

    python -m venv FOLDER && FOLDER/bin/pip install benchmark-mi "jax[cpu]<0.4.34"

The samples are kept in the folder `--cache` and drawn once. The defaults were found on sample 0 of some of the tasks;
sample 1 was held out. KSG and CCA (the closed form for Gaussian pairs, read on held-out pairs) are of the same samples.
Both peers keep their defaults, learn on one half of the pairs and are read on the other (torch-mist has hidden layers
of 256 and 128). The table is benchmarks/results/mi_tasks.json, written after every row; rows that it holds are not
measured again without `--again`. `hard` are the 20 tasks that normal scores do not turn Gaussian.

The wide features have 512 dimensions a side that are made from ten shared latents of 2 nats in all, with noise of a
tenth; and independent ones likewise.
"""
import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import describe
from benchmarks.mi_side_by_side import environment
from cotmi.core import CotmiError, read_json, to_json, write_text
from cotmi.information.estimate import estimate_mi
from cotmi.information.known_truths import gaussian_pairs
from cotmi.information.preparation import PreparedSide
from cotmi.information.twins import ksg

HERE = Path(__file__).parent
TABLE = HERE / "results" / "mi_tasks.json"
PAIRS, WIDE_PAIRS, WIDTH, LATENTS = 5000, (200, 600, 1221), 512, 10
HARD = ("additive", "student", "swissroll", "spiral") # parts of the names of tasks that stay far from Gaussian
DRAW = """
import sys, numpy as np, bmi
folder, pairs, samples = sys.argv[1], int(sys.argv[2]), [int(s) for s in sys.argv[3].split(",")]
for name, task in bmi.benchmark.BENCHMARK_TASKS.items():
    for sample in samples:
        x, y = task.sample(pairs, sample)
        np.savez(f"{folder}/{name}--{sample}.npz", x=np.asarray(x, np.float32), y=np.asarray(y, np.float32),
                 truth=float(task.mutual_information))
"""
BMI = """
import sys, numpy as np, bmi
pairs = np.load(sys.argv[1])
print(float(bmi.estimators.InfoNCEEstimator().estimate(pairs["x"], pairs["y"])))
"""
MIST = """
import sys, numpy as np, torch
from torch_mist import estimate_mi
torch.manual_seed(0)
pairs = np.load(sys.argv[1])
x, y = pairs["x"], pairs["y"]
half = len(x) // 2
print(float(estimate_mi((x[:half], y[:half]), sys.argv[2], test_data=(x[half:], y[half:]), verbose=False, logger=False,
                        hidden_dims=[256, 128])))
"""


def draw(python: Path, cache: Path, samples: list[int]) -> list[Path]:
    "The files of all tasks and samples, drawn where they are missing."
    def files() -> list[Path]:
        return sorted(path for sample in samples for path in cache.glob(f"*--{sample}.npz"))

    if len(files()) < 40 * len(samples):
        if not python.exists():
            raise CotmiError(f"There is no {python}. Make an environment with `python -m venv FOLDER`, then "
                             '`FOLDER/bin/pip install benchmark-mi "jax[cpu]<0.4.34"`, and give '
                             "--bmi-python FOLDER/bin/python.")
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run([str(python), "-c", DRAW, str(cache), str(PAIRS), ",".join(map(str, samples))], check=True)
    return files()


def wide(pairs: int, nats: float, sample: int) -> tuple[Tensor, Tensor]:
    "Features of 512 dimensions a side, made from ten shared latents."
    generator = torch.Generator().manual_seed(1000 + sample)
    latents = gaussian_pairs(pairs, LATENTS, nats, sample)
    mixes = torch.randn(2, LATENTS, WIDTH, generator=generator)
    noise = 0.1 * torch.randn(2, pairs, WIDTH, generator=generator)
    return latents[0] @ mixes[0] + noise[0], latents[1] @ mixes[1] + noise[1]


def ours(z: Any, v: Any, bound: str) -> dict[str, Any]:
    "Our estimate, with what stands beside it."
    started, used = time.perf_counter(), time.process_time()
    found = estimate_mi(z, v, bound)
    kept = ("weights", "view", "rise", "ksg", "gaussian", "read", "z_used")
    return {"value": found.value, "low": found.low, "high": found.high, "lower": found.lower, "p_value": found.p_value,
            "notes": found.notes, "warned": any("too low" in note or "unsure" in note for note in found.notes),
            "seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - used,
            **{name: found.diagnostics[name] for name in kept if name in found.diagnostics}}


def by_ksg(z: Any, v: Any) -> dict[str, Any]:
    "Nearest neighbours, on normal scores."
    started = time.perf_counter()
    sides = [torch.as_tensor(x) for x in (z, v)]
    a, b = (PreparedSide(x, x.shape[1], "normal-scores", 0)(x) for x in sides)
    value = ksg(a, b, most=PAIRS)
    return {"value": value, "seconds": time.perf_counter() - started}


def by_peer(python: Path, script: str, path: Path, *options: str) -> dict[str, Any]:
    "What a script prints last in an environment of its own."
    started = time.perf_counter()
    out = subprocess.run([str(python), "-c", script, str(path), *options], capture_output=True, text=True, check=True)
    return {"value": float(out.stdout.split()[-1]), "seconds": time.perf_counter() - started}


def estimators(options: argparse.Namespace) -> dict[str, Callable[[Path], dict[str, Any]]]:
    "Name of a column and what gives it from a file."
    def pairs(path: Path) -> tuple[Any, Any]:
        with np.load(path) as kept:
            return kept["x"], kept["y"]

    columns: dict[str, Callable[[Path], dict[str, Any]]] = {
        f"cotmi {bound}": lambda path, bound=bound: ours(*pairs(path), bound) for bound in options.bounds.split(",")}
    columns |= {"ksg": lambda path: by_ksg(*pairs(path)), "cca": lambda path: ours(*pairs(path), "gaussian")}
    if options.peers:
        columns["bmi infonce"] = lambda path: by_peer(options.bmi_python, BMI, path)
        columns |= {f"torch-mist {bound}": lambda path, bound=bound: by_peer(environment(), MIST, path, bound)
                    for bound in ("smile", "infonce")}
    return columns


def save(rows: Iterable[dict[str, Any]]):
    "Write the table, a row a line."
    lines = ",\n".join(to_json(row, None) for row in rows)
    write_text(TABLE, f'{{"command": "python -m benchmarks.mi_tasks",\n"machine": {to_json(describe(), None)},\n'
                      f'"rows": [\n{lines}\n]}}\n')


def rounded(value: Any) -> Any:
    "Four digits after the point are more than the figures deserve."
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    "The figures of each column and sample in a sentence."
    lines = []
    groups = sorted({(r["column"], r["sample"]) for r in rows if r["task"] != "wide"})
    for column, sample in groups:
        found = [r for r in rows if (r["column"], r["sample"]) == (column, sample) and r["task"] != "wide"]
        errors = [abs(r["value"] - r["truth"]) for r in found]
        hard = [e for e, r in zip(errors, found, strict=True) if any(name in r["task"] for name in HARD)]
        line = (f"{column}, sample {sample}: {len(found)} tasks, mean error {statistics.mean(errors):.3f}, largest "
                f"{max(errors):.3f}; {len(hard)} hard ones {statistics.mean(hard or [math.nan]):.3f}; lowest value "
                f"{min(r['value'] for r in found):.3f}; {sum(r['seconds'] for r in found):.0f} s")
        if all(r.get("lower") is not None for r in found):
            off = [r for e, r in zip(errors, found, strict=True) if e > 0.1]
            line += (f"; lower confidence bound holds in {sum(r['lower'] <= r['truth'] for r in found)}, above the "
                     f"truth by more than the interval {sum(r['low'] > r['truth'] for r in found)}, {len(off)} off by "
                     f"more than 0.1 of which warned {sum(r['warned'] for r in off)}")
        lines.append(line)
    for nats in (2.0, 0.0):
        for pairs in WIDE_PAIRS:
            found = [r for r in rows if r["task"] == "wide" and (r["truth"], r["pairs"]) == (nats, pairs)]
            if found:
                lines.append(f"{WIDTH} dimensions, {pairs} pairs, truth {nats}: mean of {len(found)} samples "
                             f"{statistics.mean(r['value'] for r in found):.3f}; p ≤ 0.05 in "
                             f"{sum(r['p_value'] <= 0.05 for r in found)}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bmi-python", type=Path, default=HERE / ".venv-bmi" / "bin" / "python")
    parser.add_argument("--cache", type=Path, default=HERE / ".venv-bmi" / "tasks", help="where samples are kept")
    parser.add_argument("--samples", default="0,1", help="seeds of the samples; 1 was held out")
    parser.add_argument("--bounds", default="infonce", help="bounds of ours")
    parser.add_argument("--only", default="", help="tasks with this in their name; `wide` for the wide features")
    parser.add_argument("--wide-samples", type=int, default=20, help="samples of the wide features of each size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", action="store_true", help="bmi's own InfoNCE and torch-mist's bounds too")
    parser.add_argument("--again", action="store_true", help="measure anew what is in the table already")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = read_json(TABLE)["rows"] if TABLE.exists() and not options.again else []
    done = {(r["task"], r["sample"], r["column"], r["pairs"], r["truth"]) for r in rows}

    def keep(task: str, sample: int, column: str, pairs: int, truth: float, measure: Callable[[], dict[str, Any]]):
        if (task, sample, column, pairs, rounded(truth)) in done or options.only not in task:
            return
        row = {"task": task, "sample": sample, "column": column, "pairs": pairs, "truth": truth, **measure()}
        rows.append(rounded(row))
        save(rows)
        print(f"{task} {sample} {column}: {row['value']:.3f} of {truth:.3f}, {row['seconds']:.0f} s", flush=True)

    for sample in range(options.wide_samples):
        for pairs in WIDE_PAIRS:
            for nats in (2.0, 0.0):
                keep("wide", sample, "cotmi infonce", pairs, nats,
                     lambda n=pairs, i=nats, s=sample: ours(*wide(n, i, s), "infonce"))
    if options.only != "wide":
        try:
            files = draw(options.bmi_python, options.cache, [int(s) for s in options.samples.split(",")])
        except CotmiError as fault:
            sys.exit(str(fault))
        for path in files:
            task, sample = path.stem.rsplit("--", 1)
            with np.load(path) as kept:
                truth = float(kept["truth"])
            for column, measure in estimators(options).items():
                keep(task, int(sample), column, PAIRS, truth, lambda measure=measure, path=path: measure(path))
    print("\n".join(verdicts(rows)))
    print(json.dumps({"rows": len(rows), "seconds": round(sum(r["seconds"] for r in rows))}))


if __name__ == "__main__":
    main()
