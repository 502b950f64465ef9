"The lines on a card load any student without cotmi, and it answers as it does with cotmi."
import re

import pytest

from cotmi import Run, RunConfig
from cotmi.core import read_json, write_json
from cotmi.runs.execution import execute
from cotmi.runs.sharing import model_card, share_run
from cotmi.students.generation import generate_ids
from cotmi.students.loading import load_student
from cotmi.students.tasks import input_tokens

TRAINING = dict(dataset="demo", demo_size=60, batch_size=8, max_steps=4, eval_steps=4, estimate_mi=False,
                learning_rate=1e-2, label_max_length=8)
STUDENTS = {"causal": dict(student="builtin:tiny-causal", method="dss"),
            "causal, alone": dict(student="builtin:tiny-causal", method="finetune"),
            "causal, task last": dict(student="builtin:tiny-causal", method="dss", share_prompt=True),
            "causal, adapter": dict(student="builtin:tiny-causal", method="dss", adapter="lora"),
            "encoder-decoder, adapter": dict(student="builtin:tiny", method="dss", adapter="lora")}


@pytest.mark.parametrize("name", STUDENTS)
def test_the_card_loads_a_student(name, tmp_path, capsys, monkeypatch):
    if "adapter" in name:
        pytest.importorskip("peft")
    monkeypatch.setenv("COTMI_EVALUATE_EMBEDDING_MODEL", "")
    run = execute(RunConfig(**TRAINING, **STUDENTS[name]), out=tmp_path / "outputs")
    shared = share_run(run, tmp_path / "shared", str(tmp_path / "shared"))
    card = (shared / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"```python\n(.*?)```", card, re.S)[1]
    assert "cotmi" not in lines.replace(str(shared), ""), "a stranger has transformers and peft"
    assert str(run.path) not in "".join(p.read_text(encoding="utf-8") for p in shared.rglob("*.json")) + card
    assert ("PeftModel" in lines) == ("library_name: peft" in card) == ("adapter" in name)
    capsys.readouterr()
    exec(compile(lines, "card", "exec"), {}) # noqa: S102 - what a reader of the card pastes
    said = capsys.readouterr().out
    student = load_student(str(shared))
    ids = input_tokens(["the question"], "predict", run.config["method"], student.tokenizer, student.layout, 200).ids
    assert generate_ids(student, ids).texts[0] in said and said.strip()


def test_a_hub_model_is_named_and_a_folder_is_not(tmp_path, run_copy):
    student = run_copy / "student"
    (student / "config.json").rename(student / "old.json")
    write_json(student / "adapter_config.json", {"base_model_name_or_path": "owner/large"})
    assert 'from_pretrained("owner/large")' in model_card(Run(run_copy), "me/mine")
    (tmp_path / "mine").mkdir()
    write_json(student / "adapter_config.json", {"base_model_name_or_path": str(tmp_path / "mine")})
    assert 'from_pretrained("mine")' in (card := model_card(Run(run_copy), "me/mine")) and str(tmp_path) not in card
    shared = read_json(share_run(Run(run_copy), tmp_path / "to") / "adapter_config.json")
    assert shared["base_model_name_or_path"] == "mine"
