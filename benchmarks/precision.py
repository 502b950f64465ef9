"""Does a student learn as much in bfloat16 as in float32? The demo's 1,000 steps over several seeds in both precisions.

    python -m benchmarks.precision --seeds 8

Both precisions of a seed start from the same weights and see the same batches, so accuracies are compared in pairs.
The test is one of equivalence (two one-sided t-tests): a difference of `--margin` points or more is to be ruled out,
and finding no difference would show nothing. Accuracy is that of valid and test together; with one evaluation, at the
last step, valid picks nothing. Seeds that are done are kept in benchmarks/results/precision.jsonl and not run again.
"""
import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.machine import describe
from cotmi.core import write_json, write_text
from cotmi.students.generation import generate
from cotmi.training.run_config import RunConfig, load_run_data
from cotmi.training.run_lengths import run_lengths, settle_lengths
from cotmi.training.trainer import train, watched_splits

RESULTS = Path(__file__).parent / "results"
DEMO = dict(dataset="demo", student="builtin:tiny", batch_size=32, learning_rate=3e-3, lr_scheduler="cosine",
            warmup_steps=50, dropout=0.0, demo_size=12000)


def trained_accuracy(config: RunConfig) -> dict:
    "Train a student; its accuracy, the steps and the seconds."
    data = load_run_data(config)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = train(config, data, folder, progress=False)
    seconds = time.perf_counter() - start
    config = settle_lengths(config, data, result.student)
    splits = watched_splits(data, result.student, RunConfig.resolve(config.to_dict() | {"paper_protocol": True}))
    longest = run_lengths(config).label
    right = {name: split.accuracy(generate(result.student, split.input_ids, longest)) for name, split in splits.items()}
    sizes = {name: len(split.gold) for name, split in splits.items()}
    accuracy = sum(right[name] * sizes[name] for name in right) / sum(sizes.values())
    return {"accuracy": accuracy, "answers": sum(sizes.values()), "steps": result.steps, "seconds": round(seconds, 1),
            "route": result.route}


def equivalence(differences: list[float], margin: float) -> dict:
    "Mean of paired differences, its 90 % interval, and the p-values of the two one-sided tests: no loss, no gain."
    n, mean = len(differences), float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    low, high = stats.t.interval(0.9, n - 1, mean, error) if error else (mean, mean)
    loss = stats.t.sf((mean + margin) / error, n - 1) if error else 0.0
    gain = stats.t.cdf((mean - margin) / error, n - 1) if error else 0.0
    return {"seeds": n, "difference": mean, "low": float(low), "high": float(high), "p_loss": float(loss),
            "p_gain": float(gain), "equivalent": bool(-margin < low and high < margin)}


def table(rows: list[dict], found: dict, command: str, margin: float) -> str:
    "A readable table."
    by_seed: dict[int, dict[bool, dict]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], {})[row["bf16"]] = row
    lines = [f"Measured with `{command}` on: " + ", ".join(f"{key} {value}" for key, value in describe().items()) + ".",
             "", f"Accuracy after {rows[0]['steps']:,} steps of the demo on {rows[0]['answers']:,} questions, method "
             f"{rows[0]['method']}; difference bfloat16 − float32 in points.", "",
             "| seed | float32 | bfloat16 | difference |", "|---|---|---|---|"]
    lines += [f"| {seed} | {pair[False]['accuracy']:.2%} | {pair[True]['accuracy']:.2%} "
              f"| {100 * (pair[True]['accuracy'] - pair[False]['accuracy']):+.2f} |"
              for seed, pair in sorted(by_seed.items()) if len(pair) == 2]
    loss, gain = (f"{'ruled out' if p < 0.05 else 'not ruled out'} (p = {p:.2g})"
                  for p in (found["p_loss"], found["p_gain"]))
    lines += ["", f"Mean difference {100 * found['difference']:+.2f} points, 90 % interval {100 * found['low']:+.2f} "
              f"to {100 * found['high']:+.2f}. Two one-sided t-tests: a loss of {100 * margin:g} points or more is "
              f"{loss}, a gain of as much {gain}; equivalence is {'' if found['equivalent'] else 'not '}shown."]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--method", default="mi")
    parser.add_argument("--margin", type=float, default=2, help="points of accuracy")
    options = parser.parse_args()
    kept = RESULTS / "precision.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    rows = [row for row in rows if (row["steps"], row["method"]) == (options.steps, options.method)]
    for seed in range(options.seeds):
        for bf16 in (False, True):
            if any((row["seed"], row["bf16"]) == (seed, bf16) for row in rows):
                continue
            config = RunConfig(**DEMO, method=options.method, seed=seed, max_steps=options.steps,
                               eval_steps=options.steps, bf16=bf16)
            row = {"seed": seed, "bf16": bf16, "method": options.method, **trained_accuracy(config)}
            rows.append(row)
            with kept.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
    accuracy = {(row["seed"], row["bf16"]): row["accuracy"] for row in rows if row["seed"] < options.seeds}
    found = equivalence([accuracy[seed, True] - accuracy[seed, False] for seed in range(options.seeds)],
                        options.margin / 100)
    command = f"python -m benchmarks.precision --seeds {options.seeds} --steps {options.steps}"
    write_json(RESULTS / "precision.json", {"machine": describe(), "command": command, "rows": rows, **found})
    write_text(RESULTS / "precision.md", (text := table(rows, found, command, options.margin / 100)) + "\n")
    print(text)


if __name__ == "__main__":
    main()
