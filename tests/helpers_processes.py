"""Trainings that one process and several must do alike; run as a script in each of several processes.

A script that a launcher starts: `torchrun --nproc-per-node 2 tests/helpers_processes.py FOLDER`.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from test_train import configuration, random_rows, run_trainer, small_student, student_of
from transformers import TrainerCallback

from cotmi.core import write_json
from cotmi.data.loading import load_data
from cotmi.information.bounds import BOUNDS
from cotmi.students.batches import TwoTaskCollator
from cotmi.training.processes import process_count, process_number
from cotmi.training.run_config import RunConfig
from cotmi.training.shares import BatchShare, all_rows, own_rows, share_of
from cotmi.training.step import CotModule, step_items
from cotmi.training.trainer import train

CRITIC = {"method": "mi", "features": "decoder", "critic_hidden": 16, "critic_embedding": 8}
# Rows 37: four batches of nine and a last one of a single row, five times in 20 steps.
ROWS = 37
TRAININGS: dict[str, dict[str, Any]] = {
    "dss": {}, "paper-masked": {"method": "mi", "objective": "paper-masked"},
    "paper-code": {"method": "mi", "objective": "paper-code"},
    "infonce": {**CRITIC, "objective": "infonce"}, "nwj": {**CRITIC, "objective": "nwj"},
    "accumulation": {"method": "mi", "batch_size": 3, "gradient_accumulation_steps": 3},
    "tokens_per_batch": {"batching": "length", "tokens_per_batch": 150},
}
# A whole training; without dropout, since every process drops others.
RUN = {"dataset": "demo", "method": "dss", "student": "builtin:tiny", "max_steps": 12, "eval_steps": 2,
       "batch_size": 25, "learning_rate": 0.02, "logging_steps": 1, "dropout": 0.0, "patience": 2,
       "generation_max_length": 8, "gradient_checkpointing": True}
INTERRUPTED = {**RUN, "patience": None, "max_steps": 6, "learning_rate": 3e-3}


class Keep(TrainerCallback):
    "Every line of the log."
    def __init__(self):
        self.rows: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.rows.append({name: value for name, value in logs.items() if name.startswith(("loss", "mi/", "grad"))})


class Interrupt(TrainerCallback):
    "An interruption in every process, after a step."
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


class PressStop(TrainerCallback):
    "A button that only the last process has."
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and process_number() == process_count() - 1:
            control.should_training_stop = True


def train_rows(name: str, folder: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    "Lines of the log and weights of twenty steps."
    kept, config = Keep(), configuration(**{"batch_size": 9, "learning_rate": 1e-3, **TRAININGS[name]})
    trainer = run_trainer(small_student(), random_rows(ROWS), config, folder / name, [kept])
    return kept.rows, {key: value.clone() for key, value in trainer.module.state_dict().items()}


def whole_gradient(objective: str, rows: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    "The gradient of one batch, averaged over processes, with bottleneck and critic but without noise; the parts."
    config = configuration(**CRITIC, objective=objective, gamma=0.1, mi_gradient="both")
    module = CotModule(student_of(small_student()), config).eval()
    batch, processes = TwoTaskCollator(0)(random_rows(rows)), process_count()
    wrapped = torch.nn.parallel.DistributedDataParallel(module) if processes > 1 else module
    loss, parts = wrapped(items=step_items([batch], processes), **own_rows(batch, process_number(), processes))
    loss.backward()
    gradients = {name: value.grad.clone() for name, value in module.named_parameters()}
    means = torch.stack([value.double() for value in parts.values()])
    if processes > 1:
        torch.distributed.all_reduce(means)
    return gradients, dict(zip(parts, (means / processes).tolist(), strict=True))


def ceiling(rows: int) -> float:
    "InfoNCE over features that tell every pair of the batch apart."
    features = BatchShare(process_number(), process_count(), rows)
    own = share_of(30 * torch.eye(rows), features.process, features.processes)
    scores = all_rows(own if features.rows else torch.zeros(1, rows), features)
    return BOUNDS["infonce"].read(scores).item()


def main(folder: Path):
    "Everything, the results of the first process in files."
    torch.set_num_threads(1)
    data = load_data("demo", demo_size=130)
    for name in TRAININGS:
        rows, weights = train_rows(name, folder)
        if process_number() == 0:
            write_json(folder / f"{name}.json", rows)
            save_file(weights, folder / f"{name}.safetensors")
    for objective, rows in (("infonce", 7), ("infonce", 1), ("js", 5)):
        gradients, parts = whole_gradient(objective, rows)
        if process_number() == 0:
            save_file(gradients, folder / f"{objective}{rows}.safetensors")
            write_json(folder / f"{objective}{rows}.json", parts)
    ceilings = {str(rows): ceiling(rows) for rows in (2, 5, 8)}
    if process_number() == 0:
        write_json(folder / "ceilings.json", ceilings)
    train(RunConfig(**RUN), data, folder / "run", progress=False)
    stopped = train(RunConfig(**INTERRUPTED), data, folder / "pressed", [PressStop()], progress=False)
    assert (stopped.stopped, stopped.steps) == (True, 3), stopped
    try:
        train(RunConfig(**INTERRUPTED), data, folder / "interrupted", [Interrupt()], progress=False)
    except KeyboardInterrupt:
        print("interrupted")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
