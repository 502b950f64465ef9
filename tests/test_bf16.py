"Mixed precision on a CPU: close to float32, resumed to the last bit, and chosen only where it pays."
import dataclasses
import logging
import shutil
from pathlib import Path

import pytest
import torch
from datasets import disable_progress_bars
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration, TrainerCallback

from cotmi.core import ConfigError, read_json
from cotmi.data.loading import load_data
from cotmi.runs.environment import route_record
from cotmi.students import precision
from cotmi.students.batches import TwoTaskCollator
from cotmi.students.precision import Precision, bfloat16_gain, choose_precision, products_in
from cotmi.students.student import Student
from cotmi.students.t5_fast_path import T5_PACKED
from cotmi.training import checks, trainer
from cotmi.training.objectives import OBJECTIVES
from cotmi.training.run_config import RunConfig, check_ready
from cotmi.training.step import CotModule
from cotmi.training.trainer import train

KINDS = {"v1.1": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
         "v1.0": dict(feed_forward_proj="relu")}
CPU = torch.device("cpu")
disable_progress_bars()


def student(kind: str = "v1.1", dropout: float = 0.1, words: int = 400) -> Student:
    "A T5 wide enough for rounding to matter, whose head makes logits of ordinary size."
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(
        d_model=96, d_kv=16, d_ff=160, num_layers=3, num_heads=4, vocab_size=words, dropout_rate=dropout,
        decoder_start_token_id=0, **KINDS[kind]))
    with torch.no_grad():
        model.lm_head.weight.normal_(std=96**-0.5 if kind == "v1.1" else 1.0)
    return Student(model, None, "wide")


def batch(count: int = 12, words: int = 400, seed: int = 0) -> dict[str, torch.Tensor]:
    "Examples of uneven lengths, some with an empty rationale."
    random = torch.Generator().manual_seed(seed)

    def ids(low, high):
        length = int(torch.randint(low, high, (1,), generator=random))
        return [*torch.randint(2, words, (length,), generator=random).tolist(), 1]

    return TwoTaskCollator(0)([{"predict_input_ids": ids(4, 30), "label_ids": ids(0, 4),
                                "explain_input_ids": ids(4, 30), "rationale_ids": ids(0, 25)} for _ in range(count)])


def step_of(student: Student, config: RunConfig) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    "The loss terms and the gradients of one step in a precision, always with the same dropout."
    module = CotModule(student, config).train()
    module.zero_grad()
    torch.manual_seed(1)
    with products_in(config.bf16 is True, CPU): # as accelerate wraps the forward pass
        total, parts = module(**batch())
    total.backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return {"total": total.item()} | {name: value.item() for name, value in parts.items()}, gradients


def cosine(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    "Of the angle between two gradients over all weights."
    a, b = (torch.cat([each[name].double().flatten() for name in one]) for each in (one, two))
    return torch.nn.functional.cosine_similarity(a, b, 0).item()


@pytest.mark.parametrize("values", [
    {"method": "finetune"}, {"method": "single_task"}, {"method": "dss"}, {"method": "mi"},
    {"method": "mi", "vocabulary_pass": "plain"}, {"method": "mi", "gamma": 0.01},
    *({"method": "mi", "objective": name, "features": features, "mi_gradient": "both"}
      for name, record in OBJECTIVES.items()
      for features in dict.fromkeys((record.features[0], record.features[-1])))],
    ids=lambda values: "-".join(map(str, values.values())))
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_float32_to_rounding(kind, values):
    config, learner = RunConfig(dataset="demo", **values), student(kind)
    wide, wide_gradients = step_of(learner, config)
    narrow, narrow_gradients = step_of(learner, dataclasses.replace(config, bf16=True))
    assert wide.keys() == narrow.keys()
    for name, value in wide.items():
        # What a critic that knows nothing yet says is near zero and has no relative error to speak of.
        near_zero = 2e-2 if "mi" in name and abs(value) < 1 else 0
        assert narrow[name] == pytest.approx(value, rel=1e-2, abs=near_zero), name
    assert wide != narrow # else nothing was rounded
    # A critic gets words standardised, which makes their rounding as large as the words that are hardly ever said.
    amplified = values.get("features") == "vocab" and OBJECTIVES[config.objective].bound is not None
    assert cosine(wide_gradients, narrow_gradients) >= (0.995 if amplified else 0.999)


@pytest.mark.parametrize("padded", [True, False])
def test_only_products_are_narrow(padded):
    "States, and what a weight's gradient is added to, stay in float32; the route says what is done."
    learner = student()
    with products_in(True, CPU):
        passes = T5_PACKED.forward_tasks(learner.model.train(), batch(), None, padded)
        assert T5_PACKED.route(learner.model).endswith("products in bfloat16)")
    assert {state.dtype for each in passes for state in (each.hidden, each.encoder)} == {torch.float32}
    sum(each.hidden.square().sum() for each in passes).backward()
    assert {p.grad.dtype for p in learner.model.parameters() if p.grad is not None} == {torch.float32}
    assert "bfloat16" not in T5_PACKED.route(learner.model)


def test_it_is_the_packed_route_and_not_autocasts_own():
    "The packed route under autocast is nearer to float32 than transformers' own forward under it."
    learner = student(dropout=0.0)
    learner.model.eval()
    with torch.no_grad():
        exact, _ = T5_PACKED.forward_tasks(learner.model, batch(), None, False)
        with products_in(True, CPU):
            ours, _ = T5_PACKED.forward_tasks(learner.model, batch(), None, False)
            plain = learner.model(input_ids=batch()["predict_input_ids"], labels=batch()["predict_labels"],
                                  attention_mask=batch()["predict_attention_mask"], output_hidden_states=True)
    own = plain.decoder_hidden_states[-1].float()
    def off(states): return (states - exact.hidden)[exact.mask].norm().item()
    assert 0 < off(ours.hidden) <= 1.2 * off(own)


DEMO = {"dataset": "demo", "demo_size": 60, "student": "builtin:tiny", "max_steps": 3, "eval_steps": 3, "batch_size": 8,
        "generation_max_length": 4, "logging_steps": 1, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def demo():
    return load_data("demo", demo_size=60)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student" / "model.safetensors")


def same(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("mode", ["bf16", "gradient_checkpointing", "both"])
@pytest.mark.parametrize("method", ["finetune", "single_task", "dss", "mi"])
def test_three_steps_of_every_method(tmp_path, demo, method, mode):
    modes = {name: True for name in (("bf16", "gradient_checkpointing") if mode == "both" else (mode,))}
    result = train(RunConfig(**DEMO, method=method, **modes), demo, tmp_path, progress=False)
    assert (result.steps, result.stopped) == (3, False)
    assert ("bfloat16" in result.precision) == ("bf16" in modes)
    assert result.route.startswith("packed" if mode == "bf16" else "transformers' own forward")
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


class StopAfter(TrainerCallback):
    def __init__(self, step): self.step = step
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupted(config: RunConfig, demo, folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, demo, folder, callbacks=[StopAfter(3)], progress=False)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path, demo):
    config = RunConfig(**DEMO | {"max_steps": 4, "eval_steps": 2}, method="mi", dropout=0.1, bf16=True)
    train(config, demo, tmp_path / "whole", progress=False)
    interrupted(config, demo, tmp_path / "cut")
    train(config, demo, tmp_path / "cut", progress=False)
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_auto_goes_on_in_the_precision_it_began_in(tmp_path, demo, monkeypatch):
    config = RunConfig(**DEMO | {"max_steps": 4, "eval_steps": 2}, method="dss", bf16="auto")
    began = Precision(True, "measured elsewhere")
    monkeypatch.setattr(trainer, "choose_precision", lambda asked: began)
    interrupted(config, demo, tmp_path / "cut")
    monkeypatch.setattr(trainer, "choose_precision", lambda asked: Precision(False, "this machine is another"))
    assert train(config, demo, tmp_path / "cut", progress=False).precision == began.told


def test_without_the_instructions_nothing_changes_and_one_line_says_why(tmp_path, demo, monkeypatch, caplog):
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: ())
    with caplog.at_level(logging.WARNING, precision.__name__):
        auto = train(RunConfig(**DEMO, method="mi", bf16="auto"), demo, tmp_path / "auto", progress=False)
    said = [record.getMessage() for record in caplog.records if record.name == precision.__name__]
    assert said == ["bf16=auto takes float32: the processor has no instructions for bfloat16."]
    train(RunConfig(**DEMO, method="mi"), demo, tmp_path / "plain", progress=False)
    assert same(tmp_path / "auto", tmp_path / "plain")
    assert route_record(auto.route, RunConfig(), auto.precision)["precision"] == auto.precision == (
        "float32: the processor has no instructions for bfloat16")


@pytest.mark.parametrize("gain", [0.5, 1.29, 1.31, 2.5])
def test_a_measurement_decides(monkeypatch, gain):
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: ("avx512_bf16",))
    monkeypatch.setattr(precision, "bfloat16_gain", lambda: gain)
    chosen = choose_precision("auto")
    assert chosen.bf16 == (gain > 1.3) and f"{gain:.1f} times" in chosen.told
    assert choose_precision(True).bf16 and not choose_precision(False).bf16 # whatever is measured


def test_several_processes_choose_alike(monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: ("avx512_bf16",))
    monkeypatch.setattr(precision, "bfloat16_gain", lambda: pytest.fail("each process would measure something else"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_precision("auto").bf16


def test_measuring_leaves_the_seed_alone_and_takes_about_as_long_as_it_says():
    state = torch.get_rng_state()
    assert 0.01 < bfloat16_gain(0.05) < 100
    assert torch.equal(torch.get_rng_state(), state)


def test_a_gpu_that_cannot_is_refused_before_the_start(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(precision, "_gpu_precision", lambda: Precision(False, "an old card has no units for bfloat16"))
    with pytest.raises(ConfigError, match=r"bf16 is true, but an old card .* Set bf16=auto or bf16=false"):
        check_ready(RunConfig(bf16=True))
    assert not choose_precision("auto").bf16


def test_compiling_without_a_compiler_is_refused_before_the_start(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"torch_compile is true, but there is no C\+\+ compiler"):
        check_ready(RunConfig(torch_compile=True))
    check_ready(RunConfig())
    assert checks.check_compiler(False) is None


@pytest.mark.slow
def test_three_compiled_steps(tmp_path, demo): # all methods pass, in both precisions; compiling takes a minute each
    config = RunConfig(**DEMO, method="dss", torch_compile=True, bf16=True)
    try:
        checks.check_compiler(True)
    except ConfigError as fault: # of this machine; what else is refused fails
        pytest.skip(str(fault))
    check_ready(config)
    assert train(config, demo, tmp_path, progress=False).route == "transformers' own forward: compiled"
    assert read_json(tmp_path / "training.json")["steps"] == 3
