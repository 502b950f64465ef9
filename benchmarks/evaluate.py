"""Speed of evaluation: labels and rationales of a test set, ours and plain `generate`.

    python -m benchmarks.evaluate

The plain side takes the examples in file order, 64 at a time, padded to the longest, and calls `model.generate`, as the
authors' Trainer does. The student is trained first, on few rows until it nearly knows them by heart: that way random
weights learn in minutes to end a sentence, and answers are about as long as the teacher's. What they say does not
matter here. Training is not part of the figures.
"""
import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from transformers import Adafactor

from benchmarks.machine import describe
from benchmarks.sides import Ours
from benchmarks.students import SHAPES, make_student
from benchmarks.text import test_tokens
from cotmi.core import write_json, write_text
from cotmi.students.generation import generate_ids
from cotmi.students.student import Student

RESULTS = Path(__file__).parent / "results"
TASKS = {"label": "predict_input_ids", "rationale": "explain_input_ids"}
BATCH, MOST = 64, 64
TRAIN_ROWS = 512


def trained_student(shape: str, rows: list[dict], lengths: np.ndarray, steps: int, rate: float = 2e-2):
    "A student that has seen a few rows often enough to end its answers."
    model = make_student(shape, dropout=0.0)
    # Random weights of a T5 learn several times as fast with Adafactor, which scales steps by the size of the weights.
    optimiser = Adafactor(model.parameters(), lr=rate, scale_parameter=True, relative_step=False, warmup_init=False)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps + 1, pct_start=0.1,
                                                   cycle_momentum=False)
    side = Ours(model, optimiser, rows[:TRAIN_ROWS], lengths[:TRAIN_ROWS], 16)
    for step, chosen in zip(range(1, steps + 1), side.batches(), strict=False):
        loss = side.step(chosen)
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} of {steps}, loss {loss:.3f}", flush=True)
    return model


def kept_student(folder: Path | None, shape: str, source: str, rows: list[dict], lengths: np.ndarray, steps: int):
    "The student of a folder if there is one, else a new one, which is kept there."
    made = {"shape": shape, "data": source, "steps": str(steps)}
    weights = folder / "model.safetensors" if folder else None
    if weights is None or not weights.exists():
        model = trained_student(shape, rows, lengths, steps)
        if weights:
            folder.mkdir(parents=True, exist_ok=True)
            save_model(model, str(weights), metadata=made)
        return model.eval()
    with safe_open(weights, "pt") as file:
        held = {name: (file.metadata() or {}).get(name) for name in made}
    if held != made:
        sys.exit(f"{folder} holds a student of {held}; asked for {made}. Name another folder, or delete this one.")
    model = make_student(shape, dropout=0.0)
    load_model(model, str(weights))
    return model.eval()


@torch.no_grad()
def plainly(student: Student, inputs: list[list[int]]) -> list[list[int]]:
    "Answers by `generate`, in file order."
    found, end = [], student.tokenizer.eos_token_id
    for at in range(0, len(inputs), BATCH):
        batch = student.tokenizer.pad({"input_ids": inputs[at:at + BATCH]}, return_tensors="pt")
        out = student.model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                                     max_new_tokens=MOST, do_sample=False, num_beams=1)[:, 1:].tolist()
        found += [row[:row.index(end) + 1] if end in row else row for row in out]
    return found


def ours(student: Student, inputs: list[list[int]]) -> list[list[int]]:
    "Answers as an evaluation of this package writes them."
    return generate_ids(student, inputs, MOST, BATCH).token_ids


def measure(student: Student, tokens: dict[str, list[list[int]]], repeats: int) -> dict:
    "Both sides in turn on both tasks."
    times = {name: {task: [] for task in TASKS} for name in ("plain", "ours")}
    said = {name: {} for name in times}
    for _ in range(repeats):
        for task, column in TASKS.items():
            for name, side in (("plain", plainly), ("ours", ours)):
                start = time.perf_counter()
                said[name][task] = side(student, tokens[column])
                times[name][task].append(time.perf_counter() - start)
    seconds = {name: {task: statistics.median(taken) for task, taken in each.items()} for name, each in times.items()}
    answers = said["plain"]
    return {
        "examples": len(tokens[TASKS["label"]]), "seconds": seconds,
        "ratio": sum(seconds["plain"].values()) / sum(seconds["ours"].values()),
        "identical": {task: float(np.mean([a == b for a, b in zip(answers[task], said["ours"][task], strict=True)]))
                      for task in TASKS},
        "stopped_by_itself": {task: float(np.mean([student.tokenizer.eos_token_id in a for a in answers[task]]))
                              for task in TASKS},
        "mean_tokens": {task: float(np.mean([len(a) for a in answers[task]])) for task in TASKS}}


def table(report: dict) -> str:
    "A readable table."
    lines = [f"Measured with `{report['command']}` on: "
             + ", ".join(f"{key} {value}" for key, value in report["machine"].items()) + ".", "",
             f"{report['examples']} examples of {report['data']}, student {report['shape']}; "
             f"all in all {report['ratio']:.2f} times as fast.", "",
             "| task | plain generate s | ours s | ratio | identical answers | stopped by itself | mean tokens |",
             "|---|---|---|---|---|---|---|"]
    for task in TASKS:
        plain, own = (report["seconds"][name][task] for name in ("plain", "ours"))
        lines.append(f"| {task} | {plain:.1f} | {own:.1f} | {plain / own:.2f} | {report['identical'][task]:.2%} "
                     f"| {report['stopped_by_itself'][task]:.1%} | {report['mean_tokens'][task]:.1f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="22.7M")
    parser.add_argument("--train-steps", type=int, default=500)
    parser.add_argument("--student", type=Path, help="folder that keeps the trained student for another measurement")
    parser.add_argument("--examples", type=int, default=None, help="test examples; all if not given")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows, lengths, test, tokenizer, source = test_tokens("cqa", options.examples)
    model = kept_student(options.student, options.shape, source, rows, lengths, options.train_steps)
    found = measure(Student(model, tokenizer, options.shape), test, options.repeats)
    command = " ".join(["python -m benchmarks.evaluate", *sys.argv[1:]])
    report = {"machine": describe(), "command": command, "shape": options.shape, "data": source, **found}
    write_json(RESULTS / "evaluate.json", report)
    write_text(RESULTS / "evaluate.md", table(report) + "\n")
    print(table(report))
    print(json.dumps({"evaluation_ratio": round(found["ratio"], 3), "identical": found["identical"]}))


if __name__ == "__main__":
    main()
