"""Decoder-only students against transformers' own models: states, losses, answers, likelihoods, training, saving."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from test_train import (
    StopAt,
    assert_same_weights,
    configuration,
    plain_arguments,
    random_rows,
    student_weights,
    tiny_run,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
)

from cotmi.core import ConfigError, StudentError
from cotmi.students.batches import TwoTaskCollator
from cotmi.students.builtin import train_tokenizer
from cotmi.students.features import FEATURE_KINDS, extract_features, features
from cotmi.students.generation import generate_ids, target_log_likelihoods
from cotmi.students.layout import TextLayout
from cotmi.students.loading import load_student
from cotmi.students.methods import METHODS
from cotmi.students.student import Student
from cotmi.students.tasks import tokenize_examples
from cotmi.training.fused_linear_loss import pooled_probabilities, vocabulary_pass
from cotmi.training.objectives import OBJECTIVES
from cotmi.training.step import CotModule
from cotmi.training.trainer import CotTrainer, train

SIZE = dict(vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, bos_token_id=None, eos_token_id=1,
            initializer_range=0.25)
GEMMA = dict(head_dim=8, query_pre_attn_scalar=8, sliding_window=16)
SHAPES = {
    "llama": dict(SIZE), "qwen2": dict(SIZE), "qwen3": dict(SIZE, head_dim=8),
    "gpt_neox": {name: value for name, value in SIZE.items() if name != "num_key_value_heads"},
    "gemma2": dict(SIZE, **GEMMA, final_logit_softcapping=3.0, attn_logit_softcapping=5.0),
    "gemma3_text": dict(SIZE, **GEMMA, final_logit_softcapping=3.0,
                        layer_types=["sliding_attention", "full_attention"]),
    "cohere": dict(SIZE, logit_scale=0.25, use_qk_norm=False),
}
LAYOUT = TextLayout(between="\n", after="\n", end=1)


def model_of(shape: str, seed: int = 0, **changes):
    "A small random model of a shape."
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(shape, **{**SHAPES[shape], **changes})).eval()


def student_of(model) -> Student:
    "A student that needs no tokenizer: its rows are token ids."
    return Student(model, None, "small", LAYOUT)


def batch_of(rows):
    return TwoTaskCollator(0)(rows)


def demo_texts(data) -> list[str]:
    "What a tokenizer learns from."
    return [text for column in ("input", "rationale") for text in data.examples["train"][column]]


@pytest.fixture(params=SHAPES)
def model(request):
    return model_of(request.param)


def losses_of(model, batch, implementation, **options):
    "The total of a pass, its terms, and the gradient of every weight."
    family = student_of(model).family
    model.zero_grad()
    predict, explain = family.forward_tasks(model, batch)
    terms = vocabulary_pass(implementation, predict.hidden, predict.labels, explain.hidden, explain.labels,
                            *family.head(model), softcap=predict.softcap, **options)
    terms.total.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return terms, gradients


@pytest.mark.parametrize("options", [{}, {"pool": "target"}, {"pool": "target", "mi_gradient": "both"},
                                     {"pool": "all"}])
def test_fused_losses_are_the_plain_ones(model, options):
    batch = batch_of(random_rows(6))
    model.double()
    plain, expected = losses_of(model, batch, "plain", **options)
    fused, gradients = losses_of(model, batch, "fused", slice_mb=0.01, **options)
    assert fused.losses.keys() == plain.losses.keys() and gradients.keys() == expected.keys()
    for name, value in plain.losses.items():
        torch.testing.assert_close(fused.losses[name], value, rtol=1e-9, atol=1e-9)
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", ["llama", "gemma2"])
def test_features_and_pooled_probabilities_agree_with_the_models_own_logits(shape):
    model, rows = model_of(shape).double(), random_rows(3)
    family = student_of(model).family
    task, _ = family.forward_tasks(model, batch_of(rows))
    pooled = pooled_probabilities(task.hidden, task.mask, *family.head(model), softcap=task.softcap)
    torch.testing.assert_close(features(task, "vocab", *family.head(model)), pooled, rtol=1e-9, atol=1e-12)
    weights = torch.randn_like(pooled)
    gradients = [torch.autograd.grad((z * weights).sum(), task.hidden, retain_graph=True)[0]
                 for z in (pooled, features(task, "vocab", *family.head(model)))]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    for row, told in zip(rows, pooled, strict=True):
        text, target = row["predict_input_ids"], row["label_ids"]
        logits = model(torch.tensor([[*text, *target]])).logits[0, len(text) - 1:-1]
        torch.testing.assert_close(told, logits.softmax(-1).amax(0), rtol=1e-6, atol=1e-6)


def test_losses_are_those_that_the_model_computes_itself(model):
    for row in random_rows(4):
        terms, _ = losses_of(model, batch_of([row]), "fused")
        for task, column in (("predict", "label_ids"), ("explain", "rationale_ids")):
            text, target = row[f"{task}_input_ids"], row[column]
            own = model(torch.tensor([[*text, *target]]), labels=torch.tensor([[-100] * len(text) + target])).loss
            torch.testing.assert_close(terms.losses[task], own, rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing(model):
    rows = random_rows(6)
    family, (together, other) = student_of(model).family, student_of(model).family.forward_tasks(model, batch_of(rows))
    for at, row in enumerate(rows):
        for padded, alone in zip((together, other), family.forward_tasks(model, batch_of([row])), strict=True):
            length, width = alone.labels.shape[1], alone.encoder.shape[1]
            torch.testing.assert_close(padded.hidden[at, :length], alone.hidden[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(padded.encoder[at, :width], alone.encoder[0], rtol=1e-4, atol=1e-5)
            assert padded.encoder_mask[at].sum() == width and padded.mask[at].sum() == length


def test_a_row_of_a_batch_has_no_gradient_for_another(model):
    rows = random_rows(3)
    embedded, held = model.get_input_embeddings(), {}

    def keep(module, inputs, output):
        held["states"] = output
        output.retain_grad()

    hook = embedded.register_forward_hook(keep)
    task = student_of(model).family.forward_task(model, batch_of(rows), "explain")
    hook.remove()
    task.hidden[1][task.mask[1]].sum().backward()
    gradient = held["states"].grad.abs().sum((1, 2))
    assert gradient[1] > 0 and gradient[0] == gradient[2] == 0


def test_candidates_are_scored_as_by_a_naive_loop(model):
    student, rows = student_of(model), random_rows(5)
    student.tokenizer = type("Pad", (), {"pad_token_id": 0})()
    inputs = [row["predict_input_ids"] for row in rows]
    targets = [[row["label_ids"], row["rationale_ids"], [7]] for row in rows]
    starts = [[0, min(1, len(target[1]) - 1), 0] for target in targets]
    for size in (2, 64):
        known = target_log_likelihoods(student, inputs, targets, starts, size)
        for text, candidates, begin, scores in zip(inputs, targets, starts, known, strict=True):
            for target, start, score in zip(candidates, begin, scores, strict=True):
                logits = model(torch.tensor([[*text, *target]])).logits[0, len(text) - 1:-1].log_softmax(-1)
                naive = logits[range(len(target)), target][start:].sum().item()
                assert score == pytest.approx(naive, abs=2e-4)


def test_greedy_answers_are_those_of_generate_one_by_one(model):
    student, inputs = student_of(model), [row["explain_input_ids"] for row in random_rows(5)]
    model.generation_config.repetition_penalty = 3.0 # a checkpoint's advice is no part of greedy
    own = student.family.generate(model, inputs, 8, 2)
    model.generation_config.repetition_penalty = None
    for text, answer in zip(inputs, own, strict=True):
        out = model.generate(input_ids=torch.tensor([text]), attention_mask=torch.ones(1, len(text), dtype=torch.long),
                             max_new_tokens=8, do_sample=False)
        assert answer == out[0, len(text):].tolist()


def plain_losses(model, batch):
    "Hsieh et al. 2023 with the model's own loss, input and target put into one row by hand."
    def run(task):
        texts = [ids[mask.bool()].tolist() for ids, mask in zip(batch[f"{task}_input_ids"],
                                                                batch[f"{task}_attention_mask"], strict=True)]
        targets = [labels[labels >= 0].tolist() for labels in batch[f"{task}_labels"]]
        width = max(len(text) + len(target) for text, target in zip(texts, targets, strict=True))
        ids, labels = torch.zeros(len(texts), width, dtype=torch.long), torch.full((len(texts), width), -100)
        for row, (text, target) in enumerate(zip(texts, targets, strict=True)):
            ids[row, :len(text) + len(target)] = torch.tensor(text + target)
            labels[row, len(text):len(text) + len(target)] = torch.tensor(target)
        # No mask: nothing looks at what is behind it, and eager attention in float64 makes NaN of a masked window.
        return model(input_ids=ids, labels=labels).loss
    return 0.5 * run("predict") + 0.5 * run("explain")


def trained(model, rows, config, folder):
    "Train a model on rows of token ids."
    trainer = CotTrainer(CotModule(student_of(model), config), plain_arguments(config, folder), TwoTaskCollator(0),
                         Dataset.from_list(rows), config=config, callbacks=[])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model


def test_twenty_steps_equal_a_plain_loop(tmp_path, model):
    model.double() # in float32 Adam makes steps of rounding where a gradient is zero, as of a key's bias
    config, rows, expected = configuration(), random_rows(), copy.deepcopy(model).train()
    start = copy.deepcopy(dict(model.named_parameters()))
    optimiser = torch.optim.AdamW(expected.parameters(), lr=config.learning_rate, weight_decay=0.0)
    for step in range(config.max_steps):
        optimiser.param_groups[0]["lr"] = config.learning_rate * (1 - step / config.max_steps)
        optimiser.zero_grad()
        plain_losses(expected, batch_of(rows[step * 8:(step + 1) * 8])).backward()
        torch.nn.utils.clip_grad_norm_(expected.parameters(), config.max_grad_norm)
        optimiser.step()
    trained(model, rows, config, tmp_path)
    assert_same_weights(model.named_parameters(), expected.named_parameters())
    assert all(not torch.equal(value, start[name]) for name, value in model.named_parameters())


def test_without_weight_the_term_changes_nothing(tmp_path, model):
    rows, config = random_rows(48), dataclasses.replace(configuration(), max_steps=6)
    dss = trained(copy.deepcopy(model), rows, config, tmp_path)
    mi = trained(model, rows, dataclasses.replace(config, method="mi", beta=0.0), tmp_path)
    assert all(torch.equal(one, two) for one, two in zip(dss.parameters(), mi.parameters(), strict=True))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains(tmp_path, objective):
    config = dataclasses.replace(configuration(), method="mi", objective=objective, max_steps=2,
                                 features=OBJECTIVES[objective].features[-1])
    model = model_of("gemma2")
    before = copy.deepcopy(dict(model.named_parameters()))
    trained(model, random_rows(16), config, tmp_path)
    for name, value in model.named_parameters():
        assert value.isfinite().all() and not torch.equal(value, before[name]), name


def test_a_bottleneck_has_no_place(tmp_path):
    with pytest.raises(ConfigError, match=r"gamma is 0\.1, but small is decoder-only: .* Set gamma=0"):
        CotModule(student_of(model_of("llama")), dataclasses.replace(configuration(), gamma=0.1))


@pytest.fixture(scope="module")
def tokenizer(demo_data):
    return train_tokenizer(demo_texts(demo_data), 400)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_saved_student_is_a_plain_checkpoint(tmp_path, demo_data, tokenizer, shape):
    model = model_of(shape, vocab_size=len(tokenizer), eos_token_id=None)
    student = Student(model, tokenizer, shape)
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id]
    tokens = tokenize_examples(demo_data.examples["test"].select(range(3)), tokenizer, "dss", layout=student.layout)
    student.save(tmp_path)
    plain, back = AutoModelForCausalLM.from_pretrained(tmp_path), load_student(str(tmp_path))
    assert type(plain) is type(model) and back.layout == student.layout and back.family.name == "decoder-only"
    for name, value in model.state_dict().items():
        assert torch.equal(plain.state_dict()[name], value) and torch.equal(back.model.state_dict()[name], value), name
    answers = generate_ids(student, tokens["predict_input_ids"], 6).token_ids
    assert generate_ids(back, tokens["predict_input_ids"], 6).token_ids == answers
    for text, answer in zip(tokens["predict_input_ids"], answers, strict=True):
        ids = torch.tensor([text])
        assert plain.generate(input_ids=ids, max_new_tokens=6, do_sample=False,
                              attention_mask=torch.ones_like(ids))[0, len(text):].tolist() == answer
    if shape != "qwen2": # transformers reads a Qwen2's tokenizer by rules of its own, which are not this toy's
        again = AutoTokenizer.from_pretrained(tmp_path)
        assert again("Ann has 12.")["input_ids"] == tokenizer("Ann has 12.")["input_ids"]


def test_features_of_every_kind(demo_data, tokenizer):
    student = Student(model_of("qwen3", vocab_size=len(tokenizer) + 5), tokenizer, "qwen3") # padded, as Qwen's is
    tokens = tokenize_examples(demo_data.examples["test"].select(range(4)), tokenizer, "mi", layout=student.layout)
    for kind in FEATURE_KINDS:
        made = extract_features(student, tokens, kind, batch_size=3)
        alone = extract_features(student, tokens.select([2]), kind)
        assert made.z.shape == made.v.shape and made.ids == tokens["id"]
        torch.testing.assert_close(torch.tensor(made.v[2]), torch.tensor(alone.v[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_each_method(tmp_path, demo_data, monkeypatch, method):
    from cotmi.evaluation.evaluator import evaluate_student

    monkeypatch.setenv("COTMI_EVALUATE_EMBEDDING_MODEL", "")
    config = tiny_run(student="builtin:tiny-causal", method=method, max_steps=2, eval_steps=1, estimate_mi=False,
                      rationale_max_length=12, label_max_length=8)
    result = train(config, demo_data, tmp_path, progress=False)
    assert result.route == "transformers' own forward" and result.steps == 2
    figures = evaluate_student(load_student(str(tmp_path / "student")), demo_data, config, progress=False).figures
    assert figures["test/examples"] == len(demo_data.examples["test"]) and "test/ece" in figures


@pytest.mark.parametrize("values", [{"share_prompt": True}, {"objective": "infonce", "features": "decoder"}])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path, demo_data, values):
    config = tiny_run(student="builtin:tiny-causal", max_steps=6, eval_steps=2, generation_max_length=4, **values)
    train(config, demo_data, tmp_path / "whole", progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(config, demo_data, tmp_path / "cut", callbacks=[StopAt(3)], progress=False)
    train(config, demo_data, tmp_path / "cut", progress=False)
    one, two = student_weights(tmp_path / "whole"), student_weights(tmp_path / "cut")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_input_and_target_share_the_positions(demo_data, tokenizer):
    from cotmi.training.run_config import RunConfig
    from cotmi.training.run_lengths import run_lengths, settle_limits

    student = Student(model_of("llama", vocab_size=len(tokenizer), max_position_embeddings=300), tokenizer, "small")
    def settled(**asked):
        lengths = run_lengths(settle_limits(RunConfig(**asked), student))
        return lengths.input, lengths.target
    assert settled() == (200, 100) and settled(max_input_length=250) == (250, 50)
    assert settled(max_target_length=40) == (260, 40) and settled(max_input_length=90, max_target_length=9) == (90, 9)
    for asked in (dict(max_input_length=200, max_target_length=101), dict(max_input_length=300)):
        with pytest.raises(ConfigError, match="share 300 positions"):
            settled(**asked)


def test_a_bert_is_no_student(tmp_path, tokenizer):
    config = AutoConfig.for_model("bert", **{**SIZE, "vocab_size": len(tokenizer)})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(StudentError, match="looks at the text behind a word too"):
        load_student(str(tmp_path))


def test_dropout_reaches_the_attention(tmp_path, tokenizer):
    for shape in ("llama", "gpt_neox"):
        Student(model_of(shape, vocab_size=len(tokenizer)), tokenizer, shape).save(tmp_path / shape)
        model = load_student(str(tmp_path / shape), dropout=0.5).model.train()
        ids = torch.arange(2, 12)[None]
        assert not torch.equal(model(ids).logits, model(ids).logits)
        assert torch.equal(model.eval()(ids).logits, model(ids).logits)
    assert F.dropout(torch.ones(8), 0.0, True).eq(1).all() # the default of the checkpoints above
