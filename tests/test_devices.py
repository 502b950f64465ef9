"What makes a step fit an accelerator, seen from a CPU: no waits, no tensor made elsewhere, float32 masters."
import pytest
import torch
from helpers_small_students import METHODS, MODELS, NAMES, batch, module, small_student, small_t5
from helpers_waits import waits
from transformers import TrainerCallback

from cotmi.core import ConfigError, StudentError, read_json_lines
from cotmi.data.loading import load_data
from cotmi.students.encoder_decoder import ENCODER_DECODER
from cotmi.students.loading import set_attention
from cotmi.training import fused_linear_loss
from cotmi.training.run_config import RunConfig, check_field, check_ready
from cotmi.training.run_student import recompute_activations
from cotmi.training.step import clip_apart
from cotmi.training.trainer import train

ALLOWED = "masking_utils.py" # transformers looks once a forward pass whether anything is padded


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    "The vocabulary pass that an accelerator gets."
    monkeypatch.setattr(fused_linear_loss, "WALKED", ())


@pytest.fixture(scope="module")
def small_data():
    return load_data("demo", demo_size=60)


def trained_module(family, method, values):
    made = module(MODELS[family](), method, **values).train()
    if family == "t5": # the packed route is for a CPU
        made.family = ENCODER_DECODER
    return made


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(("method", "values"), METHODS, ids=NAMES)
def test_no_step_reads_a_value_of_the_device(as_on_a_gpu, family, method, values):
    made, given = trained_module(family, method, values), batch(method)
    with waits() as noted:
        total, _ = made(**given)
        total.backward()
        clip_apart(made, 1.0, torch.nn.utils.clip_grad_norm_)
    assert [line for line in noted if ALLOWED not in line] == []
    assert len(noted) <= 8 # reads of the masks, two names each


def test_a_wait_would_be_noted():
    values = torch.arange(4.0)
    with waits() as noted:
        values.sum().item()
        values.tolist()
        values[values > 1]
        bool(values.any())
        values.nonzero()
    assert {line.partition(" at ")[0] for line in noted} >= {"item", "tolist", "index", "__bool__", "nonzero"}


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(("method", "values"), METHODS, ids=NAMES)
def test_no_tensor_is_made_without_its_device(as_on_a_gpu, family, method, values):
    "A tensor made without one would be on `meta` here, and could not be computed with."
    made, given = trained_module(family, method, values), batch(method)
    expected, _ = made(**given)
    made = trained_module(family, method, values)
    with torch.device("meta"):
        total, parts = made(**given)
        total.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert all(value.device.type == "cpu" for value in parts.values())


TRAINING = dict(dataset="demo", demo_size=60, student="builtin:tiny", batch_size=8, max_steps=6, eval_steps=3,
                logging_steps=1, learning_rate=1e-3, estimate_mi=False)


class Stop(TrainerCallback):
    "Ends a training as a power cut would, after a step."
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("values", [{"weights": "bfloat16"}, {"weights": "bfloat16", "adapter": "lora"}],
                         ids=["weights", "adapter"])
def test_narrow_weights_resume_to_the_last_bit(tmp_path, small_data, values):
    config = RunConfig(**TRAINING, method="mi", objective="infonce", **values)
    whole = train(config, small_data, tmp_path / "whole", progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(config, small_data, tmp_path / "cut", [Stop(4)], progress=False)
    again = train(config, small_data, tmp_path / "cut", progress=False)
    assert again.steps == whole.steps == 6
    for name, value in whole.student.model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, again.student.model.state_dict()[name]), name


def test_narrow_weights_and_recomputed_activations_come_close_to_float32(small_data, tmp_path):
    lines = {}
    for name, values in {"float32": {}, "narrow": {"weights": "bfloat16"}, "again": {"gradient_checkpointing": True},
                         "eager": {"attn_implementation": "eager"}}.items():
        train(RunConfig(**TRAINING, method="dss", **values), small_data, tmp_path / name, progress=False)
        rows = read_json_lines(tmp_path / name / "history.jsonl")
        lines[name] = [row["loss"] for row in rows if "loss" in row]
    assert lines["again"] == pytest.approx(lines["float32"], rel=1e-4)
    assert lines["eager"] == pytest.approx(lines["float32"], rel=1e-4)
    assert lines["narrow"] == pytest.approx(lines["float32"], rel=3e-2)


def test_what_cannot_be_had_here_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU here"):
        check_ready(RunConfig(fp16=True))
    with pytest.raises(ConfigError, match="expected one precision"):
        RunConfig(fp16=True, weights="bfloat16")
    with pytest.raises(ConfigError, match="one student over several devices"):
        check_field("device_map", "auto")
    with pytest.raises(StudentError, match="attn_implementation is 'flash_attention_2'"):
        set_attention(small_t5(), "flash_attention_2")
    student = small_student(small_t5())
    student.model.supports_gradient_checkpointing = False
    with pytest.raises(StudentError, match="gradient_checkpointing is true"):
        recompute_activations(student)
