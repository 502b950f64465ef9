"""Speed of tokenising as many rows as e-SNLI has: ours, a second start, and the plain way.

    python -m benchmarks.tokenise

The text is made up, in the lengths of e-SNLI. The plain side is what a script does: `Dataset.map` over the tokenizer's
own call, both tasks, in batches of a thousand. Both sides may use the tokenizer's threads (`TOKENIZERS_PARALLELISM`).
The second start is a process of its own that finds the tokens where the first one kept them, in a cache folder that is
deleted in the end.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, disable_progress_bars

from benchmarks.machine import describe, reset_peak, resident_mb
from benchmarks.text import make_tokenizer
from cotmi.students.tasks import student_input
from cotmi.students.token_cache import kept_tokens

ESNLI_ROWS = 549_367
WORDS = {"input": (23, 7, 8, 80), "rationale": (13, 6, 3, 60)} # mean, spread, least, most


def esnli_like(rows: int, seed: int = 0) -> Dataset:
    "Made-up rows, quickly: words are drawn for all rows at once."
    random = np.random.default_rng(seed)
    syllables = np.array([c + v for c in "bcdfghklmnprstvw" for v in "aeiou"])
    vocabulary = np.array(["".join(random.choice(syllables, size=random.integers(1, 4))) for _ in range(6_000)])
    shares = 1 / np.arange(1, len(vocabulary) + 1)
    columns = {"id": [str(i) for i in range(rows)], "label": random.choice(["entailment", "neutral", "contradiction"],
                                                                           size=rows).tolist()}
    for name, (mean, spread, least, most) in WORDS.items():
        counts = np.clip(random.normal(mean, spread, rows).round(), least, most).astype(int)
        ends = np.cumsum(counts)
        words = random.choice(vocabulary, size=ends[-1], p=shares / shares.sum())
        columns[name] = [" ".join(words[end - n:end]) for end, n in zip(ends, counts, strict=True)]
    return Dataset(pa.table(columns))


def plainly(rows: Dataset, tokenizer) -> Dataset:
    "Both tasks by `Dataset.map`."
    def tokenise(batch):
        made = {}
        for task in ("predict", "explain"):
            texts = [student_input(text, task, "dss", "</s>") for text in batch["input"]]
            made[f"{task}_input_ids"] = tokenizer(texts, truncation=True, max_length=1024)["input_ids"]
        for name, column in (("label_ids", "label"), ("rationale_ids", "rationale")):
            made[name] = tokenizer(text_target=batch[column], truncation=True, max_length=256)["input_ids"]
        return made
    return rows.map(tokenise, batched=True, remove_columns=["input", "label", "rationale"])


def timed(work) -> tuple[Dataset, dict[str, float]]:
    "What some work gives, its seconds, and the memory that it took beyond what was there."
    reset_peak()
    before, start = resident_mb(), time.perf_counter()
    made = work()
    return made, {"seconds": time.perf_counter() - start, "peak_mb": resident_mb(peak=True) - before}


def measure(rows: int, part: str) -> dict:
    "The figures of one side."
    disable_progress_bars()
    examples = esnli_like(rows)
    tokenizer = make_tokenizer(examples.select(range(min(rows, 3_000))))
    sides = {"plain": lambda: plainly(examples, tokenizer), "ours": lambda: kept_tokens(examples, tokenizer, "dss")}
    made, figures = timed(sides["plain" if part == "plain" else "ours"])
    tokens = int(sum(made.with_format("arrow")[:]["rationale_ids"].combine_chunks().value_lengths().to_numpy()))
    return figures | {"rationale_tokens": tokens}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ESNLI_ROWS)
    parser.add_argument("--part", choices=("plain", "first", "second"))
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measure(options.rows, options.part)))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = {"machine": describe(), "rows": options.rows, "load": os.getloadavg()[0]}
        for part in ("first", "second", "plain"):
            told = subprocess.run(
                [sys.executable, "-m", "benchmarks.tokenise", "--part", part, "--rows", str(options.rows)], check=True,
                stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_DATASETS_CACHE": folder})
            figures[part] = json.loads(told.stdout.splitlines()[-1])
        figures["file_mb"] = sum(path.stat().st_size for path in Path(folder).rglob("*.arrow")) / 2**20
    figures["times_as_fast"] = figures["plain"]["seconds"] / figures["first"]["seconds"]
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
