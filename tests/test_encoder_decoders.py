"Encoder-decoders beyond T5, each tiny and random: every method trains, answers and scores are the model's own."
import json
import logging
import shutil
import tempfile
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import transformers as hf

from cotmi.core import StudentError
from cotmi.students.batches import TwoTaskCollator
from cotmi.students.builtin import train_tokenizer
from cotmi.students.encoder_decoder import check_logits, hidden_size
from cotmi.students.family import bounded
from cotmi.students.generation import generate_ids, target_log_likelihoods
from cotmi.students.loading import load_student
from cotmi.students.student import Student
from cotmi.training.run_config import RunConfig
from cotmi.training.step import CotModule

TEXTS = ["Ann has 3 pens and finds 4 more.", "Where does a fish live? river bank, mall", "3 + 4 = 7.", "answer: 7"] * 3
TOKENIZER = train_tokenizer(TEXTS, 300)
WORDS = len(TOKENIZER)
MARKS = dict(pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
T5 = dict(vocab_size=WORDS, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, **MARKS)
BART = dict(vocab_size=WORDS, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=128,
            forced_eos_token_id=None, **MARKS)
GEMMA = dict(vocab_size=WORDS, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
             num_key_value_heads=1, head_dim=8, sliding_window=64, pad_token_id=0, eos_token_id=1, bos_token_id=2)
BERT = dict(vocab_size=WORDS, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=128)


def put_together(encoder: int, decoder: int) -> hf.EncoderDecoderModel:
    "Two BERTs of these widths as one student."
    config = hf.EncoderDecoderConfig.from_encoder_decoder_configs(
        hf.BertConfig(**BERT, hidden_size=encoder), hf.BertConfig(**BERT, hidden_size=decoder))
    model = hf.EncoderDecoderModel(config=config)
    model.config.decoder_start_token_id, model.config.pad_token_id, model.config.eos_token_id = 2, 0, 1
    model.generation_config = hf.GenerationConfig(decoder_start_token_id=2, pad_token_id=0, eos_token_id=1)
    return model


def kind(model: str, config: str, **values) -> Callable[[], hf.PreTrainedModel]:
    return lambda: getattr(hf, model)(getattr(hf, config)(**values))


KINDS: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "bart": kind("BartForConditionalGeneration", "BartConfig", **BART),
    "pegasus": kind("PegasusForConditionalGeneration", "PegasusConfig", **BART),
    "marian": kind("MarianMTModel", "MarianConfig", **BART, decoder_vocab_size=WORDS),
    "mt5": kind("MT5ForConditionalGeneration", "MT5Config", **T5),
    "umt5": kind("UMT5ForConditionalGeneration", "UMT5Config", **T5),
    "ul2": kind("T5ForConditionalGeneration", "T5Config", **T5, feed_forward_proj="gated-silu",
                tie_word_embeddings=False),
    "longt5": kind("LongT5ForConditionalGeneration", "LongT5Config", **T5, local_radius=4),
    "t5gemma": lambda: hf.T5GemmaForConditionalGeneration(hf.T5GemmaConfig(
        encoder=dict(GEMMA), decoder=dict(GEMMA), pad_token_id=0, eos_token_id=1, bos_token_id=2)),
    "encoder-decoder": lambda: put_together(16, 16),
}
STEPS = [dict(method="finetune"), dict(method="single_task"), dict(method="dss"), dict(method="mi"),
         dict(method="mi", objective="paper-code"), dict(method="mi", objective="infonce", features="encoder"),
         dict(method="mi", objective="nwj", features="decoder", gamma=0.1)]


def rows(count: int = 4) -> list[dict[str, list[int]]]:
    random = torch.Generator().manual_seed(0)

    def ids(low, high):
        length = int(torch.randint(low, high, (1,), generator=random))
        return [*torch.randint(3, WORDS, (length,), generator=random).tolist(), 1]
    return [{"predict_input_ids": ids(3, 12), "label_ids": ids(1, 4), "explain_input_ids": ids(3, 12),
             "rationale_ids": ids(2, 14)} for _ in range(count)]


def made(name: str) -> Student:
    torch.manual_seed(0)
    return Student(KINDS[name]().eval(), TOKENIZER, name)


@pytest.mark.parametrize("name", KINDS)
def test_states_times_head_are_the_models_own_logits(name):
    student, batch = made(name), TwoTaskCollator(0)(rows())
    with torch.no_grad():
        task, _ = student.family.forward_tasks(student.model, batch)
        ours = bounded(F.linear(task.hidden, *student.family.head(student.model)), task.softcap)
        own = student.model(input_ids=batch["predict_input_ids"], attention_mask=batch["predict_attention_mask"],
                            labels=batch["predict_labels"]).logits
    assert (ours - own)[task.mask].abs().max() < 1e-5 * max(1, own.abs().max())
    check_logits(student.model, name)


@pytest.mark.parametrize("name", KINDS)
def test_every_method_takes_two_steps(name):
    student, whole = made(name), TwoTaskCollator(0)(rows())
    for values in STEPS:
        module = CotModule(student, config := RunConfig(**values)).train()
        two = config.method in ("dss", "mi")
        batch = {key: value for key, value in whole.items() if two or key.startswith("predict")}
        optimiser = torch.optim.SGD(module.parameters(), lr=1e-3)
        before = [value.clone() for value in student.model.parameters()]
        for _ in range(2):
            loss, _ = module(**batch)
            loss.backward()
            assert loss.isfinite()
            optimiser.step()
            optimiser.zero_grad()
        moved = sum(not torch.equal(*pair) for pair in zip(before, student.model.parameters(), strict=True))
        assert moved > 0.8 * len(before), values # a few parts have no gradient for some tasks


@pytest.mark.parametrize("name", KINDS)
def test_answers_and_scores_hold_alone_and_when_read_back(name):
    student, asked = made(name), [row["predict_input_ids"] for row in rows()]
    answers = generate_ids(student, asked, 8, 3).token_ids
    assert answers == [generate_ids(student, [ids], 8, 1).token_ids[0] for ids in asked]
    scores = target_log_likelihoods(student, asked, [[[5, 1], [6, 7, 1]]] * 4)
    ids, labels = torch.tensor([asked[0]]), torch.tensor([[6, 7, 1]])

    def naive(model):
        with torch.no_grad():
            own = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).logits
        return own.log_softmax(-1)[0].gather(1, labels.T).sum().item()
    assert scores[0][1] == pytest.approx(naive(student.model), rel=1e-5)
    with tempfile.TemporaryDirectory() as folder:
        student.save(folder)
        back = load_student(folder)
        plain = hf.AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert generate_ids(back, asked, 8, 3).token_ids == answers
    assert naive(plain.eval()) == pytest.approx(naive(student.model), rel=1e-6)


def test_loading_advises_only_what_the_file_does_not_say(tmp_path, caplog, monkeypatch):
    "A head of its own: no word where the configuration says so, transformers' advice where it says the opposite."
    student = made("ul2")
    student.model.lm_head.weight = torch.nn.Parameter(torch.randn_like(student.model.lm_head.weight))
    student.save(tmp_path / "true")
    shutil.copytree(tmp_path / "true", tmp_path / "false")
    config = json.loads((tmp_path / "true" / "config.json").read_text())
    (tmp_path / "false" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    caplog.set_level("WARNING", logger="transformers")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True) # to where caplog listens
    load_student(str(tmp_path / "true"))
    assert not caplog.messages
    load_student(str(tmp_path / "false"))
    assert any("tie_word_embeddings=False" in message for message in caplog.messages)


def test_two_widths_have_vocabulary_features_alone():
    model = put_together(24, 16).eval()
    check_logits(model, "two widths")
    module = CotModule(Student(model, TOKENIZER, "two widths"), RunConfig(method="mi")).train()
    assert module(**TwoTaskCollator(0)(rows()))[0].isfinite()
    with pytest.raises(StudentError, match="encoder of this EncoderDecoderModel is 24 wide and its decoder 16"):
        hidden_size(model)


def test_a_model_that_does_something_else_to_its_logits_is_refused(monkeypatch):
    model = KINDS["bart"]().eval()
    plain = model.forward

    def colder(*args, **kwargs):
        out = plain(*args, **kwargs)
        out.logits = out.logits * 2
        return out
    monkeypatch.setattr(model, "forward", colder)
    with pytest.raises(StudentError, match="are not its states times its output head"):
        check_logits(model, "colder")
