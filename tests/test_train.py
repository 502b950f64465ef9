"""The trainer against plain loops, against the published trainer's numbers, and against itself."""

import dataclasses
import json
import logging
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, are_progress_bars_disabled
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSeq2SeqLM,
    PrinterCallback,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging as hf_logging

from cotmi.core import ConfigError, read_json_lines
from cotmi.students.batches import TwoTaskCollator
from cotmi.students.student import Student
from cotmi.training.objectives import Objective
from cotmi.training.run_config import RunConfig
from cotmi.training.step import CotModule, run_objective
from cotmi.training.trainer import CotTrainer, train, training_arguments

GOLDEN = Path(os.environ.get("COTMI_GOLDEN", "../shared/data/golden"))
COLUMNS = {"predict_input": "predict_input_ids", "explain_input": "explain_input_ids", "label": "label_ids",
           "rationale": "rationale_ids"}


def small_student(seed: int = 0, vocabulary: int = 48) -> T5ForConditionalGeneration:
    "A T5 v1.1 with its own head and no dropout."
    torch.manual_seed(seed)
    config = T5Config(vocab_size=vocabulary, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0,
                      feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(vocabulary, 16) / 4)
    return model


def student_of(model) -> Student:
    "A student that needs no tokenizer: its rows are token ids."
    return Student(model, None, "small")


def random_rows(count: int = 160, vocabulary: int = 48, seed: int = 0) -> list[dict]:
    "Token ids of every mix of lengths."
    generator = torch.Generator().manual_seed(seed)

    def ids(low, high):
        length = torch.randint(low, high, (1,), generator=generator).item()
        return [*torch.randint(2, vocabulary, (length,), generator=generator).tolist(), 1]

    rows = []
    for _ in range(count):
        text = ids(4, 12)
        rows.append({"predict_input_ids": [2, *text], "explain_input_ids": [3, *text], "label_ids": ids(0, 3),
                     "rationale_ids": ids(2, 14)})
    return rows


def plain_arguments(config: RunConfig, folder: Path) -> TrainingArguments:
    "The run's own arguments, without evaluation and checkpoints."
    return dataclasses.replace(training_arguments(config, folder), eval_strategy="no", save_strategy="no",
                               load_best_model_at_end=False)


def run_trainer(model, rows, config, folder, callbacks=()):
    "Train on rows of token ids; returns the trainer."
    trainer = CotTrainer(CotModule(student_of(model), config), plain_arguments(config, folder), TwoTaskCollator(0),
                         Dataset.from_list(rows), config=config, callbacks=list(callbacks))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def configuration(**values) -> RunConfig:
    "Sequential batches of 8 for 20 steps at the learning rate of the golden numbers."
    return RunConfig(**{"method": "dss", "batching": "sequential", "batch_size": 8, "max_steps": 20,
                        "learning_rate": 5e-4, "logging_steps": 1, **values})


def plain_losses(model, batch, alpha=0.5, beta=0.0, masked=True):
    "The losses of Hsieh et al. 2023 and Chen et al. 2024, written out."
    def run(task):
        out = model(input_ids=batch[f"{task}_input_ids"], attention_mask=batch[f"{task}_attention_mask"],
                    labels=batch[f"{task}_labels"])
        return out.loss, out.logits, batch[f"{task}_labels"] != -100

    predict, predict_logits, predict_mask = run("predict")
    explain, explain_logits, explain_mask = run("explain")
    total = alpha * predict + (1 - alpha) * explain
    mi = None
    if beta:
        z, v = predict_logits.softmax(-1), explain_logits.softmax(-1)
        if masked:
            z, v = z * predict_mask.unsqueeze(-1), v * explain_mask.unsqueeze(-1)
        mi = F.cross_entropy(v.max(1).values, z.max(1).values.detach())
        total = total + beta * mi
    return total, {"predict": predict, "explain": explain, "mi": mi}


def plain_loop(model, rows, config, losses):
    "AdamW with linear decay to 0 and clipping, by hand."
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)
    collate = TwoTaskCollator(0)
    for step in range(config.max_steps):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * (1 - step / config.max_steps)
        batch = collate(rows[step * 8:(step + 1) * 8])
        optimiser.zero_grad()
        losses(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimiser.step()
    return model


def assert_same_weights(weights, expected, relative=1e-5):
    "Every tensor within `relative` of the expected one, in the Euclidean norm."
    expected = dict(expected)
    for name, value in weights:
        difference = (value - expected[name]).norm() / expected[name].norm()
        assert difference <= relative, f"{name} differs by {difference:.2e}"


@pytest.mark.parametrize("objective", [None, "paper-masked", "paper-code"])
@pytest.mark.parametrize("vocabulary_pass", ["plain", "fused"])
def test_twenty_steps_equal_a_plain_loop(tmp_path, objective, vocabulary_pass):
    config = configuration(method="mi" if objective else "dss", objective=objective or "paper-masked",
                           vocabulary_pass=vocabulary_pass)
    beta = config.beta if objective else 0.0
    rows, model = random_rows(), small_student()
    expected = plain_loop(small_student(), rows, config,
                          lambda m, b: plain_losses(m, b, beta=beta, masked=objective != "paper-code")[0])
    run_trainer(model, rows, config, tmp_path)
    assert_same_weights(model.named_parameters(), expected.named_parameters())
    start = dict(small_student().named_parameters())
    assert all(not torch.equal(value, start[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("objective", ["paper-masked", "paper-code", "infonce"])
def test_without_weight_the_term_changes_nothing(tmp_path, objective):
    features = "decoder" if objective == "infonce" else "vocab"
    rows, dss, mi = random_rows(), small_student(), small_student()
    run_trainer(dss, rows, configuration(), tmp_path)
    run_trainer(mi, rows, configuration(method="mi", objective=objective, beta=0.0, features=features), tmp_path)
    for name, value in mi.named_parameters():
        assert torch.equal(value, dict(dss.named_parameters())[name]), name


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    rows = random_rows(40)
    large, small = small_student(), small_student()
    run_trainer(large, rows, configuration(max_steps=5), tmp_path)
    run_trainer(small, rows, configuration(max_steps=5, batch_size=1, gradient_accumulation_steps=8), tmp_path)
    assert_same_weights(small.named_parameters(), large.named_parameters())


class Norms(TrainerCallback):
    "Collect the loss terms that the trainer logs."
    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.rows.append(dict(logs))


def test_terms_are_logged_by_name(tmp_path):
    seen = Norms()
    config = configuration(method="mi", batch_size=4, gradient_accumulation_steps=2)
    run_trainer(small_student(), random_rows(), config, tmp_path, [seen])
    assert len(seen.rows) == config.max_steps
    for row in seen.rows:
        total = 0.5 * row["loss/predict"] + 0.5 * row["loss/explain"] + 0.1 * row["loss/mi"]
        assert row["loss"] == pytest.approx(total, abs=2e-4)  # the Trainer rounds its own sum


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden numbers at {GOLDEN} (set COTMI_GOLDEN)")
@pytest.mark.parametrize("name", ["dss", "mi_paper_code"])
@pytest.mark.parametrize("vocabulary_pass", ["plain", "fused"])
def test_the_published_trainers_numbers(tmp_path, name, vocabulary_pass):
    expected = json.loads((GOLDEN / "expected.json").read_text())
    rows = [{COLUMNS[k]: v for k, v in row.items()} for row in json.loads((GOLDEN / "examples.json").read_text())]
    # Eager attention, as transformers 4.44 had it for T5: AdamW blows the last digit of a gradient near zero up.
    model = AutoModelForSeq2SeqLM.from_pretrained(GOLDEN / "initial", dtype=torch.float32, attn_implementation="eager")
    config = configuration(method=name[:3] if name == "dss" else "mi", objective="paper-code",
                           alpha=expected["alpha"], beta=expected["beta"], learning_rate=expected["lr"],
                           vocabulary_pass=vocabulary_pass)

    module, first = CotModule(student_of(model), config).train(), expected[name]["first_batch"]
    loss, parts = module(**TwoTaskCollator(0)(rows[:8]))
    loss.backward()
    assert loss.item() == pytest.approx(first["loss"], rel=1e-5)
    for term in ("predict", "explain", "mi"):
        if term in first:
            assert parts[f"loss/{term}"].item() == pytest.approx(first[term], rel=1e-5), term
    norms = {n: p.grad.norm().item() for n, p in model.named_parameters()}
    for parameter, norm in first["gradient_norms"].items():
        assert norms[parameter] == pytest.approx(norm, rel=1e-4, abs=1e-7), parameter
    model.zero_grad()

    seen = Norms()
    run_trainer(model, rows, config, tmp_path, [seen])
    assert len(seen.rows) == expected["steps"]
    after = load_file(GOLDEN / f"{name}_after_20" / "model.safetensors")
    trained = {n: p for n, p in model.state_dict().items() if n in after}
    assert len(trained) == len(after)
    assert_same_weights(trained.items(), after.items(), 3e-5) # 1.35e-5 on a processor with AMX, which rounds otherwise


def tiny_run(**values) -> RunConfig:
    "A run of the demo that takes seconds."
    return RunConfig(**{"dataset": "demo", "method": "mi", "student": "builtin:tiny", "max_steps": 12, "eval_steps": 4,
                        "batch_size": 16, "learning_rate": 3e-3, "logging_steps": 2, "dropout": 0.1, **values})


def student_weights(folder: Path) -> dict:
    return load_file(folder / "student" / "model.safetensors")


class KeepLast(TrainerCallback):
    "Keep the weights of the last step, whichever checkpoint valid picks."
    def __init__(self, path):
        self.path = path

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == state.max_steps:
            save_file({name: value.clone() for name, value in model.state_dict().items()}, self.path)


class StopAt(TrainerCallback):
    "End the process's training after a step, as an interrupt would."
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("values", [{}, {"objective": "infonce", "features": "decoder", "method": "mi"}])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path, demo_data, values):
    config = tiny_run(**values)
    whole = train(config, demo_data, tmp_path / "whole", progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(config, demo_data, tmp_path / "cut", callbacks=[StopAt(7)], progress=False)
    assert not (tmp_path / "cut" / "student").exists()
    resumed = train(config, demo_data, tmp_path / "cut", progress=False)
    one, two = student_weights(tmp_path / "whole"), student_weights(tmp_path / "cut")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (whole.best_step, whole.best_accuracy) == (resumed.best_step, resumed.best_accuracy)
    steps = [row["step"] for row in read_json_lines(tmp_path / "cut" / "history.jsonl") if "loss" in row]
    assert steps == sorted(set(steps)) and steps[-1] == 12


@pytest.mark.parametrize("method", ["finetune", "single_task", "dss"])
def test_two_runs_are_identical_and_leave_a_plain_student(tmp_path, demo_data, method):
    config = tiny_run(method=method, max_steps=4, eval_steps=2, paper_protocol=method == "dss")
    results = [train(config, demo_data, tmp_path / name, progress=False) for name in ("a", "b")]
    one, two = (student_weights(tmp_path / name) for name in ("a", "b"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "a" / "student")
    for name, value in results[0].student.model.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])
    history = read_json_lines(tmp_path / "a" / "history.jsonl")
    assert ("test/accuracy" in history[-1]) == (method == "dss")
    assert not (tmp_path / "a" / "checkpoints").exists()
    left = {p.suffix for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert left <= {".json", ".jsonl", ".safetensors"}, "nothing that stays is a pickle"


def state_of_the_process() -> dict:
    "What a library can change for all others in the same process."
    return {"transformers": hf_logging.get_verbosity(), "datasets bars": are_progress_bars_disabled(),
            "root level": logging.getLogger().level, "root handlers": list(logging.getLogger().handlers),
            "silent below": logging.root.manager.disable, "interrupt": signal.getsignal(signal.SIGINT),
            "end": signal.getsignal(signal.SIGTERM), "environment": dict(os.environ), "folder": os.getcwd(),
            "numbers": torch.get_default_dtype(), "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(), "gradients": torch.is_grad_enabled(),
            "products": torch.get_float32_matmul_precision(), "hook": sys.excepthook}


def test_training_leaves_the_process_as_it_found_it(tmp_path, demo_data):
    before = state_of_the_process()
    train(tiny_run(max_steps=2, eval_steps=2), demo_data, tmp_path / "run", progress=False)
    assert state_of_the_process() == before


def test_a_finished_training_is_read_back(tmp_path, demo_data):
    config = tiny_run(method="finetune", max_steps=2, eval_steps=2)
    first = train(config, demo_data, tmp_path, progress=False)
    again = train(config, demo_data, tmp_path, progress=False)
    assert first.metrics() == again.metrics()


@pytest.mark.parametrize("objective", ["infonce", "nwj", "dv", "smile", "js", "barber-agakov"])
def test_every_variational_objective_trains_critic_and_student(tmp_path, objective):
    config = configuration(method="mi", objective=objective, features="decoder", max_steps=4, mi_gradient="both")
    seen, model = Norms(), small_student()
    trainer = run_trainer(model, random_rows(32), config, tmp_path, [seen])
    start = CotModule(student_of(small_student()), config).objective
    before = dict(start.named_parameters())
    assert before and any(not torch.equal(p, before[n]) for n, p in trainer.model.objective.named_parameters())
    assert all(torch.isfinite(torch.tensor([row["loss/mi"], row[f"mi/{objective}"]])).all() for row in seen.rows)


def squared_distance(z, v):
    return ((z - v) ** 2).mean()


DISTANCE = Objective("distance", "Squared distance", squared_distance, features=("decoder", "encoder"))


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_an_objective_of_ones_own_trains(tmp_path, beta):
    config = configuration(method="mi", objective="infonce", features="decoder", beta=beta, max_steps=4)
    config.objective = f"{__name__}:DISTANCE"
    rows, dss, own, seen = random_rows(32), small_student(), small_student(), Norms()
    run_trainer(dss, rows, configuration(max_steps=4), tmp_path)
    trainer = run_trainer(own, rows, config, tmp_path, [seen])
    assert trainer.model.objective is None and all(row["loss/mi"] > 0 for row in seen.rows)
    for row in seen.rows:
        total = 0.5 * row["loss/predict"] + 0.5 * row["loss/explain"] + beta * row["loss/mi"]
        assert row["loss"] == pytest.approx(total, abs=2e-4)
    same = [torch.equal(value, dict(dss.named_parameters())[name]) for name, value in own.named_parameters()]
    assert all(same) if beta == 0 else not all(same)


def test_an_objective_refuses_features_that_it_cannot_compare():
    config = configuration(method="mi", objective="infonce")
    config.objective = f"{__name__}:DISTANCE"
    with pytest.raises(ConfigError, match="allowed are decoder, encoder"):
        run_objective(config)


def test_accuracy_while_training_is_that_of_the_evaluation(tmp_path, demo_data):
    from cotmi.evaluation.answers import answer

    config = tiny_run(method="single_task", max_steps=8, eval_steps=4)
    result = train(config, demo_data, tmp_path, progress=False)
    valid = demo_data.examples["valid"]
    predicted = answer(result.student, valid, config, rationales=False).predicted_label
    right = demo_data.spec.kind.right(predicted, valid["gold_label"])
    assert result.best_accuracy == pytest.approx(sum(right) / len(right))


def test_watching_changes_no_weight(tmp_path, demo_data):
    "How often a run looks, and at what, draws no random number: dropout is the same."
    for name, values in {"seldom": {"eval_steps": 6}, "often": {"eval_steps": 2, "paper_protocol": True}}.items():
        config = tiny_run(max_steps=6, max_valid_examples=5, **values)
        train(config, demo_data, tmp_path / name, [KeepLast(tmp_path / f"{name}.safetensors")], progress=False)
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("seldom", "often"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_bottleneck_reports_its_kl_and_leaves_a_plain_student(tmp_path):
    seen, model = Norms(), small_student()
    config = configuration(method="mi", gamma=0.01, max_steps=4)
    trainer = run_trainer(model, random_rows(32), config, tmp_path, [seen])
    assert all(row["loss/bottleneck"] > 0 for row in seen.rows)
    module, batch = trainer.model.eval(), TwoTaskCollator(0)(random_rows(4))
    predict, _ = module.passes(**batch)
    plain = model(input_ids=batch["predict_input_ids"], attention_mask=batch["predict_attention_mask"],
                  labels=batch["predict_labels"]).logits
    real = predict.mask # states of padded positions are not computed
    torch.testing.assert_close((predict.hidden @ model.lm_head.weight.T)[real], plain[real], atol=1e-5, rtol=1e-5)
