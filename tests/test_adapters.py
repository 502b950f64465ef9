"Adapters: made by peft, trained beside a critic, saved as peft saves them, read back by peft alone, merged on request."
import json
from dataclasses import fields

import pytest
import torch
from helpers_small_students import MODELS, batch, losses, module, small_t5
from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration

from cotmi.core import ConfigError, StudentError
from cotmi.data.loading import load_data
from cotmi.students.adapter_kinds import ADAPTER_KINDS
from cotmi.students.adapters import (
    BASE,
    AdapterOptions,
    add_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
    trained_values,
)
from cotmi.students.generation import generate_ids
from cotmi.students.loading import adapted, load_student
from cotmi.training.run_config import RunConfig, check_ready
from cotmi.training.trainer import train

peft = pytest.importorskip("peft")
# What these kinds need at so small a width, where peft's defaults are for larger layers.
NEEDED = {"waveft": {"n_frequency": 20}, "fourierft": {"n_frequency": 20}, "shira": {"r": 2}, "miss": {"r": 4},
          "road": {"group_size": 8}, "c3a": {"block_size": 8}, "vblora": {"vector_length": 8, "num_vectors": 16},
          "boft": {"boft_block_size": 4}, "oft": {"oft_block_size": 8, "r": 0}}
# No place in a base layer to be merged into: T5's layers have no bias.
UNMERGED = ("beft",)
# Kinds of peft that are not ours, each with its reason.
AROUND = "changes what goes into the whole model, and our passes call its parts"
OTHERS = {"PROMPT_TUNING": AROUND, "MULTITASK_PROMPT_TUNING": AROUND, "P_TUNING": AROUND, "PREFIX_TUNING": AROUND,
          "CPT": AROUND, "CARTRIDGE": AROUND, "ADAPTION_PROMPT": AROUND, "SHADOW": AROUND,
          "ADALORA": "changes its ranks between steps, and has to be told of each", "POLY": "needs the id of a task",
          "XLORA": "mixes adapters that are trained already", "FROD": "decomposes all layers together",
          "TRAINABLE_TOKENS": "trains rows of the embedding alone", "LILY": "shares tensors that safetensors refuses",
          "ADAMSS": "has to be told of each step"}
TRAINING = dict(dataset="demo", demo_size=60, student="builtin:tiny", batch_size=8, max_steps=4, eval_steps=2,
                logging_steps=1, learning_rate=1e-2, estimate_mi=False, adapter="lora", adapter_rank=4)


def test_every_kind_of_peft_is_ours_or_has_a_reason():
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    ours = {kind.peft_type for kind in ADAPTER_KINDS.values()}
    assert {str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING} == ours | set(OTHERS)


def answer(model) -> torch.Tensor:
    given = batch("dss")
    with torch.no_grad():
        return model(input_ids=given["predict_input_ids"], attention_mask=given["predict_attention_mask"],
                     labels=given["predict_labels"]).logits


@pytest.mark.parametrize("name", ADAPTER_KINDS)
def test_every_kind_trains_is_read_back_and_merges(name, tmp_path):
    model = small_t5()
    adapter = add_adapter(model, AdapterOptions(name, more=NEEDED.get(name)), keep=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first = answer(model)
    made = module(model, "dss").train()
    optimiser = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.3)
    for _ in range(2):
        losses(made, "dss")[0].backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()
    frozen = [key for key, value in model.named_parameters() if not value.requires_grad]
    assert frozen and all(torch.equal(before[key], model.state_dict()[key]) for key in frozen)
    trained = answer(model)
    assert not torch.allclose(trained, first, atol=1e-5)
    save_adapter(adapter, tmp_path, tmp_path)
    base = T5ForConditionalGeneration.from_pretrained(tmp_path / BASE).eval()
    again = load_adapter(base, tmp_path)
    assert torch.allclose(answer(base.eval()), trained, atol=1e-6)
    if name in UNMERGED:
        with pytest.raises(StudentError, match="cannot be merged"):
            merge_adapter(again)
        return
    merged = merge_adapter(again)
    assert {type(part) for part in merged.modules()} <= {type(part) for part in small_t5().modules()}
    assert (answer(merged) - trained).abs().max() < 1e-3 * trained.abs().max()


@pytest.fixture(scope="module")
def small_data():
    return load_data("demo", demo_size=60)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_data):
    "A training with an adapter and a critic beside it."
    folder = tmp_path_factory.mktemp("adapter")
    config = RunConfig(**TRAINING, method="mi", objective="infonce", features="decoder")
    return train(config, small_data, folder, progress=False), folder


def test_a_run_says_how_much_it_trained(trained, capsys, small_data, tmp_path):
    result, folder = trained
    few, every = trained_values(result.student.model)
    assert 0 < result.trained_share == few / every < 0.05
    assert result.metrics()["train/trained_share"] == result.trained_share
    assert json.loads((folder / "training.json").read_text())["trained_share"] == result.trained_share
    train(RunConfig(**TRAINING, method="finetune"), small_data, tmp_path)
    assert f"{few:,} of {every:,} values are trained" in capsys.readouterr().out


def test_critic_and_adapter_lie_as_they_should(trained):
    _, folder = trained
    files = {path.relative_to(folder / "student").as_posix() for path in (folder / "student").rglob("*")}
    assert {"adapter_config.json", "adapter_model.safetensors", "critic.safetensors", "tokenizer.json",
            f"{BASE}/config.json", f"{BASE}/model.safetensors"} <= files
    assert "model.safetensors" not in files and not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)


def answers(model, student) -> list[list[int]]:
    student = student if model is None else type(student)(model.eval(), student.tokenizer, "other", student.layout)
    return generate_ids(student, [[5, 6, 7, 1], [8, 9, 1], list(range(10, 30)) + [1]], 12).token_ids


def test_the_folder_loads_with_ours_with_peft_alone_and_with_transformers(trained):
    result, folder = trained
    expected, home = answers(None, result.student), str(folder / "student")
    assert answers(None, load_student(home)) == expected
    base = AutoModelForSeq2SeqLM.from_pretrained(f"{home}/{BASE}")
    assert answers(base, result.student) != expected or result.best_step == 0
    alone = peft.PeftModel.from_pretrained(base, home)
    assert answers(alone.base_model.model, result.student) == expected
    found = peft.AutoPeftModelForSeq2SeqLM.from_pretrained(home) # by the name that the adapter gives
    assert answers(found.base_model.model, result.student) == expected
    assert answers(AutoModelForSeq2SeqLM.from_pretrained(home), result.student) == expected


def test_a_folder_that_was_moved_still_finds_its_model(trained, tmp_path):
    result, folder = trained
    moved = tmp_path / "elsewhere"
    (folder / "student").rename(moved)
    try:
        assert answers(None, load_student(str(moved))) == answers(None, result.student)
    finally:
        moved.rename(folder / "student")


def test_a_merged_student_is_a_plain_checkpoint_with_the_same_answers(small_data, tmp_path):
    config = RunConfig(**TRAINING, method="dss")
    beside = train(config, small_data, tmp_path / "beside", progress=False)
    merged = train(RunConfig(**TRAINING, method="dss", adapter_merged=True), small_data, tmp_path / "merged",
                   progress=False)
    assert not (tmp_path / "merged" / "student" / "adapter_config.json").exists()
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged" / "student")
    assert answers(plain, merged.student) == answers(None, merged.student) == answers(None, beside.student)
    assert merged.trained_share == beside.trained_share < 0.05


@pytest.mark.parametrize("family", MODELS)
def test_no_adapter_goes_where_it_would_be_passed_by(family):
    with pytest.raises(StudentError, match="output head would be passed by"):
        add_adapter(MODELS[family](), AdapterOptions("lora", target="lm_head"))
    model = MODELS[family]()
    add_adapter(model, AdapterOptions("lora", target="all-linear", more={"modules_to_save": ["lm_head"]}))
    made = module(model, "dss").train()
    losses(made, "dss")[0].backward()
    head = model.get_output_embeddings()
    assert any(value.grad is not None and value.grad.abs().max() > 0 for value in head.parameters())


def test_what_cannot_be_meant_is_refused(monkeypatch, small_data):
    with pytest.raises(ConfigError, match="Did you mean 'lora'"):
        RunConfig(adapter="lorra")
    with pytest.raises(ConfigError, match="there is no adapter"):
        RunConfig(adapter_merged=True)
    with pytest.raises(StudentError, match="has no option 'use_dorra'. Did you mean 'use_dora'"):
        add_adapter(small_t5(), AdapterOptions("lora", more={"use_dorra": True}))
    with pytest.raises(StudentError, match="peft (refuses|cannot)"):
        add_adapter(small_t5(), AdapterOptions("lora", target="nowhere"))
    student = load_student("builtin:tiny", ["a text", "another text"] * 3)
    with pytest.raises(StudentError, match="has an adapter already"):
        adapted(adapted(student, AdapterOptions("lora")), AdapterOptions("lora"))
    monkeypatch.setattr("cotmi.training.run_config.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'cotmi\[adapters\]'"):
        check_ready(RunConfig(adapter="lora"))


def test_every_option_of_a_run_reaches_the_adapter():
    options = {f"adapter_{each.name}" for each in fields(AdapterOptions) if each.name not in ("kind", "more")}
    known = {each.name for each in fields(RunConfig) if each.name.startswith("adapter_")}
    assert known == options | {"adapter_options", "adapter_merged"}
