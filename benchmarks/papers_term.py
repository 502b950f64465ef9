"""What the paper's term can do on a data set's text, and what it does in a few training steps.

    python -m benchmarks.papers_term demo cqa svamp --train demo cqa --out nbs/tutorials/papers_term.json

First without any training: a student that is sure of every token it was taught has z and v of zeros and ones, and the
term of the text itself is then known. Then a few steps of `builtin:tiny` from scratch at several weights, with what the
history logs of the term; a weight of 0 logs it and does not train on it.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from cotmi.core import RunFile, read_json_lines, write_json
from cotmi.data.examples import LoadedData
from cotmi.data.loading import load_data
from cotmi.students.loading import load_student
from cotmi.students.tasks import tokenize_examples
from cotmi.training.papers_term import term_figures
from cotmi.training.run_config import RunConfig
from cotmi.training.trainer import train, training_texts

STEPS = {"demo": 100, "cqa": 40}
SHOWN = ("loss/predict", "loss/explain", "loss/mi", "mi/overlap", "mi/overlap_without_end", "mi/term_floor",
         "mi/term_ceiling", "mi/gradient_share")


def on_text(data: LoadedData, rows: int = 1000) -> dict[str, float]:
    "The term's figures of a student that is sure of every token, and how long the texts are."
    student = load_student("builtin:tiny", training_texts(data))
    train_rows = data.examples["train"]
    tokens = tokenize_examples(train_rows.select(range(min(rows, len(train_rows)))), student.tokenizer, "mi")
    z, v = (torch.zeros(len(tokens), len(student.tokenizer)) for _ in range(2))
    for row, (label, rationale) in enumerate(zip(tokens["label_ids"], tokens["rationale_ids"], strict=True)):
        z[row, label], v[row, rationale] = 1, 1
    lengths = torch.tensor([len(ids) for ids in tokens["rationale_ids"]])
    figures = term_figures(z, v, lengths, student.tokenizer.eos_token_id)
    term = (z.sum(1) * v.logsumexp(1) - (z * v).sum(1)).mean()
    alone = (z.sum(1) * np.log(z.shape[1])).mean() # v says nothing at all
    return {**{name: float(value) for name, value in figures.items()}, "term": float(term), "term_of_nothing": float(
        alone), "words": z.shape[1], "label_tokens": float(z.sum(1).mean()), "rationale_tokens": float(
        lengths.float().mean()), "rows": len(tokens)}


def in_training(name: str, data: LoadedData, beta: float, steps: int) -> dict[str, float]:
    "The last line of the log and the last evaluation of a short training."
    config = RunConfig(dataset=name, student="builtin:tiny", objective="paper-masked", beta=beta, max_steps=steps,
                       eval_steps=steps, logging_steps=10, batch_size=32 if name == "demo" else 16, learning_rate=3e-3,
                       warmup_steps=10, dropout=0.0, generation_max_length=8)
    with tempfile.TemporaryDirectory() as folder:
        train(config, data, folder, progress=False)
        rows = read_json_lines(Path(folder) / RunFile.HISTORY)
    first, last = ([row for row in rows if "loss" in row][at] for at in (0, -1))
    evaluation = [row for row in rows if "valid/accuracy" in row][-1]
    return {"beta": beta, "steps": steps, **{f"first {name}": first[name] for name in SHOWN},
            **{name: last[name] for name in SHOWN},
            **{name: evaluation[name] for name in evaluation if name.startswith("valid/")}}


def main():
    "Measure and write."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--train", nargs="*", default=[])
    parser.add_argument("--betas", nargs="*", type=float, default=[0.0, 0.1, 1.0])
    parser.add_argument("--out", default="nbs/tutorials/papers_term.json")
    asked = parser.parse_args()
    found = {"text": {}, "training": {}}
    for name in asked.data:
        data = load_data(name, max_train=2000, max_valid=100, max_test=20)
        found["text"][name] = on_text(data)
        print(name, json.dumps(found["text"][name]), flush=True)
        write_json(Path(asked.out), found)
    for name in asked.train:
        data = load_data(name, max_train=2000, max_valid=100, max_test=20)
        found["training"][name] = []
        for beta in asked.betas:
            found["training"][name].append(in_training(name, data, beta, STEPS.get(name, 40)))
            print(name, json.dumps(found["training"][name][-1]), flush=True)
            write_json(Path(asked.out), found)


if __name__ == "__main__":
    main()
