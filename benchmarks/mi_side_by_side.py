"""Estimates of mutual information beside torch-mist 0.2.17: the same pairs, critic sizes and optimiser steps.

    python -m benchmarks.mi_side_by_side            all bounds on three samples, about ten minutes on two cores
    python -m benchmarks.mi_side_by_side --quick    one sample and three bounds

torch-mist needs numpy < 2, so it gets an environment of its own, benchmarks/.venv-torch-mist, made on the first call.
Both sides train a critic with hidden widths 128 and 64 for 1,500 steps of 256 pairs out of 5,000 at a learning rate of
5e-4, and read it on 5,000 other pairs. torch-mist runs with its own defaults (a joint critic with one false pair
for each true one, but a separable critic with all false pairs for InfoNCE; read in batches of 256), and once more with
the separable critic for the others too. Ours runs twice as well, always with the separable critic: from nothing, and
from the closed form for Gaussian pairs, as `estimate_mi` does by default. Both hold an eighth of the training pairs
back to choose the step whose weights are kept, take all steps nonetheless, score a batch in blocks of 64 for bounds
other than InfoNCE, and are read in blocks of 1,000 with a bootstrap interval, which is within the seconds.
The result is nbs/tutorials/mi_side_by_side.json, which the tutorial on estimators shows.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import describe
from cotmi.core import read_json, to_json, write_text
from cotmi.information.bounds import get_bound
from cotmi.information.critic_fit import fit_critic, read_bound, score, shuffled_batches
from cotmi.information.critics import get_critic
from cotmi.information.known_truths import gaussian_pairs
from cotmi.information.preparation import CanonicalBasis, PreparedSide

HERE = Path(__file__).parent
ENVIRONMENT = HERE / ".venv-torch-mist"
NAMES = {"infonce": "infonce", "nwj": "nwj", "dv": "mine", "js": "js", "smile": "smile", "club": "club"}
SAMPLES = {"2 nats, d = 10": (10, 2.0), "5 nats, d = 20": (20, 5.0), "independent, d = 20": (20, 0.0)}
HIDDEN, STEPS, BATCH, PAIRS, BLOCK, RATE = (128, 64), 1500, 256, 5000, 64, 5e-4


def environment() -> Path:
    "The Python of torch-mist's environment, made if it is missing."
    python = ENVIRONMENT / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not python.exists():
        print("making", ENVIRONMENT, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "torch-mist==0.2.17", "numpy<2", "pandas",
                        f"torch=={torch.__version__.split('+')[0]}"], check=True)
    return python


def theirs(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], bounds: list[str],
           critic: str | None) -> dict[str, dict[str, float]]:
    "torch-mist's estimate of each bound; `critic` None leaves it its own."
    options = {"estimators": [NAMES[b] for b in bounds], "steps": STEPS, "batch": BATCH, "hidden": HIDDEN,
               "critic": critic, "rate": RATE, "seed": 0}
    with tempfile.TemporaryDirectory() as folder:
        arrays = {f"{part}_{side}": x.numpy() for part, pairs in (("train", train), ("test", test))
                  for side, x in zip("xy", pairs, strict=True)}
        np.savez(Path(folder) / "pairs.npz", **arrays)
        run = subprocess.run([str(environment()), str(HERE / "mi_torch_mist.py"), f"{folder}/pairs.npz",
                              json.dumps(options)], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"torch-mist failed:\n{run.stderr[-2000:]}")
    found = {(row := json.loads(line))["estimator"]: row for line in run.stdout.splitlines() if line.startswith("{")}
    return {b: found[NAMES[b]] for b in bounds}


def ours(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], bound: str, start: str) -> dict[str, float]:
    "Our estimate, from the same training and test pairs."
    torch.manual_seed(0)
    started, used = time.perf_counter(), time.process_time()
    record, width = get_bound(bound).with_tau(5.0), train[0].shape[1]
    kind = record.critic or get_critic("separable")
    # A tower ends in an embedding, the density model of z given v does not.
    critic = kind.make(width, width, HIDDEN if record.critic else HIDDEN[:-1], HIDDEN[-1])
    if start == "none":
        mean, spread = zip(*((x.mean(0), x.std(0)) for x in train), strict=True)
        (z, v), (z_test, v_test) = ([(x - m) / s for x, m, s in zip(pairs, mean, spread, strict=True)]
                                    for pairs in (train, test))
    else:
        fit = len(train[0]) // 8
        sides = [PreparedSide(x[fit:], width, "normal-scores", 0) for x in train]
        prepared = [[side(x) for side, x in zip(sides, pairs, strict=True)] for pairs in (train, test)]
        basis = CanonicalBasis(*(x[fit:] for x in prepared[0]))
        (z, v), (z_test, v_test) = (basis(*pairs) for pairs in prepared)
        critic = kind.start(critic, basis.correlations, record.offset)
    held = len(z) // 8
    fit_critic(critic, record, shuffled_batches(z[held:], v[held:], BATCH), (z[:held], v[:held]), steps=STEPS,
               patience=STEPS, every=50, learning_rate=RATE, block=None if record.capped else BLOCK)
    matrices = [score(critic, a, b) for a, b in zip(z_test.split(1000), v_test.split(1000), strict=True)]
    found = read_bound(record, matrices)
    return {"value": found.value, "low": found.low, "high": found.high, "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - used}


def compare(sample: str, bounds: list[str]) -> list[dict[str, Any]]:
    "One row a bound and side."
    width, nats = SAMPLES[sample]
    z, v = gaussian_pairs(2 * PAIRS, width, nats, seed=0)
    train, test = (z[:PAIRS], v[:PAIRS]), (z[PAIRS:], v[PAIRS:])
    sides = {"torch-mist": theirs(train, test, bounds, None),
             "torch-mist, separable": theirs(train, test, [b for b in bounds if b not in ("infonce", "club")],
                                             "separable")}
    for start in ("none", "gaussian"):
        sides[f"cotmi, start={start}"] = {b: ours(train, test, b, start) for b in bounds}
    return [{"sample": sample, "truth": nats, "bound": b, "side": side, "error": abs(row["value"] - nats),
             **{k: row[k] for k in ("value", "low", "high", "seconds", "cpu_seconds") if k in row}}
            for b in bounds for side, rows in sides.items() if (row := rows.get(b))]


def table(rows: list[dict[str, Any]]) -> str:
    "The rows as Markdown."
    lines = ["| sample | bound | side | estimate | absolute error | seconds |", "|---|---|---|---|---|---|"]
    return "\n".join(lines + [f"| {r['sample']} | {r['bound']} | {r['side']} | {r['value']:.2f} | {r['error']:.2f} | "
                              f"{r['seconds']:.1f} |" for r in rows])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one sample and three bounds")
    parser.add_argument("--bounds", nargs="*", default=None, choices=list(NAMES))
    parser.add_argument("--samples", nargs="*", default=None, help="numbers of the samples: 0, 1, 2")
    options = parser.parse_args()
    bounds = options.bounds or (["infonce", "js", "smile"] if options.quick else list(NAMES))
    names = [list(SAMPLES)[int(k)] for k in options.samples or ("0" if options.quick else "012")]
    path = HERE.parent / "nbs" / "tutorials" / "mi_side_by_side.json"
    kept = read_json(path)["rows"] if path.exists() else []
    for name in names:
        found = [{k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
                 for row in compare(name, bounds)]
        print(table(found), flush=True)
        kept = [r for r in kept if r["sample"] != name or r["bound"] not in bounds] + found
        lines = ",\n".join(to_json(row, None) for row in kept)
        write_text(path, f'{{"command": "python -m benchmarks.mi_side_by_side",\n"machine": '
                         f'{to_json(describe(), None)},\n"rows": [\n{lines}\n]}}\n')
    print(f"written to {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
