"""The prompts of decoder-only students: chat templates, limits, and both tasks behind one prompt."""

import pytest
import torch
from test_causal import SHAPES, demo_texts, model_of
from test_train import tiny_run

from cotmi.core import StudentError
from cotmi.data.examples import SEGMENT_SEPARATOR
from cotmi.students.batches import TwoTaskCollator
from cotmi.students.builtin import train_tokenizer
from cotmi.students.causal import CAUSAL
from cotmi.students.generation import generate_ids
from cotmi.students.layout import AS_USUAL, PromptOptions, TextLayout, sequence_layout
from cotmi.students.loading import load_student
from cotmi.students.methods import METHODS
from cotmi.students.shared_prompt import tails_of
from cotmi.students.student import Student
from cotmi.students.tasks import tokenize_examples
from cotmi.training.fused_linear_loss import vocabulary_pass
from cotmi.training.trainer import train

TEMPLATE = ("{% if messages[0].role != 'system' %}[SYS]You help.[END]\n{% endif %}{% for m in messages %}"
            "{{ {'system': '[SYS]', 'user': '[ASK]', 'assistant': '[SAY]'}[m.role] + m.content + '[END]\n' }}"
            "{% endfor %}{% if add_generation_prompt %}[SAY]{% if enable_thinking is defined and not enable_thinking %}"
            "<think>\n\n</think>\n\n{% endif %}{% endif %}")


@pytest.fixture(scope="module")
def tokenizer(demo_data):
    return train_tokenizer(demo_texts(demo_data), 400)


@pytest.fixture
def chat_tokenizer(demo_data):
    made = train_tokenizer(demo_texts(demo_data), 400)
    made.add_special_tokens({"additional_special_tokens": ["[SYS]", "[ASK]", "[SAY]", "[END]"]})
    made.chat_template = TEMPLATE
    return made


def chat_student(chat_tokenizer, options=AS_USUAL) -> Student:
    model = model_of("qwen3", vocab_size=len(chat_tokenizer), eos_token_id=None)
    return Student(model, chat_tokenizer, "chat", sequence_layout(chat_tokenizer, options))


@pytest.mark.parametrize("options", [PromptOptions(), PromptOptions(system="Be brief."), PromptOptions(thinking=True)])
def test_a_chat_model_reads_its_own_template(demo_data, chat_tokenizer, options):
    student, rows = chat_student(chat_tokenizer, options), demo_data.examples["test"].select(range(3))
    tokens = tokenize_examples(rows, chat_tokenizer, "dss", layout=student.layout)
    for row, made in zip(rows, tokens, strict=True):
        messages = [{"role": "system", "content": options.system}] * bool(options.system)
        messages.append({"role": "user", "content": f"explain: {row['input']}"})
        text = chat_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True,
                                                  enable_thinking=options.thinking)
        assert ("</think>" in text) is not options.thinking
        assert chat_tokenizer.decode(made["explain_input_ids"]) == chat_tokenizer.decode(
            chat_tokenizer(text, add_special_tokens=False)["input_ids"])
        end = chat_tokenizer.convert_tokens_to_ids("[END]")
        assert made["rationale_ids"][-1] == made["label_ids"][-1] == end != chat_tokenizer.eos_token_id


def test_a_chat_model_stops_at_the_end_of_its_turn(demo_data, chat_tokenizer):
    student = chat_student(chat_tokenizer)
    end = chat_tokenizer.convert_tokens_to_ids("[END]")
    student.model.lm_head = torch.nn.Linear(16, len(chat_tokenizer)) # which always says that the turn is over
    torch.nn.init.zeros_(student.model.lm_head.weight)
    with torch.no_grad():
        student.model.lm_head.bias.zero_()[end] = 1
    rows = demo_data.examples["test"].select(range(2))
    tokens = tokenize_examples(rows, chat_tokenizer, "dss", layout=student.layout)
    told = generate_ids(student, tokens["predict_input_ids"], 5)
    assert told.token_ids == [[end], [end]] and told.texts == ["", ""] and told.cut == [False, False]


def test_a_prompt_is_kept_beside_the_student(tmp_path, chat_tokenizer):
    options = PromptOptions(system="Be brief.", share=True)
    student = chat_student(chat_tokenizer, options)
    student.save(tmp_path)
    back = load_student(str(tmp_path))
    assert back.layout == student.layout and "Be brief." in back.layout.before and back.layout.task_last
    assert load_student(str(tmp_path), prompt=PromptOptions(chat=False)).layout.before == ""
    (tmp_path / "prompt_layout.json").write_text('{"after": 3}')
    with pytest.raises(StudentError, match="holds no layout of prompts"):
        load_student(str(tmp_path))


def test_what_is_no_prompt_of_a_student_is_refused(tmp_path, demo_data):
    for student, values, words in (
            ("builtin:tiny", {"share_prompt": True}, "this one has an encoder"),
            ("builtin:tiny-causal", {"system_prompt": "Be brief."}, "the student is asked plainly"),
            ("builtin:tiny-causal", {"chat": True}, "has no chat template")):
        with pytest.raises(StudentError, match=words):
            train(tiny_run(student=student, **values), demo_data, tmp_path, progress=False)


@pytest.mark.parametrize("share", [False, True])
def test_a_limit_cuts_the_input_and_nothing_behind_it(demo_data, tokenizer, share):
    layout = sequence_layout(tokenizer, PromptOptions(share=share))
    rows = demo_data.examples["test"].select(range(4))
    whole = tokenize_examples(rows, tokenizer, "dss", layout=layout)
    short = tokenize_examples(rows, tokenizer, "dss", 16, 6, layout=layout)
    tail = tails_of(tokenizer, layout).shortest
    for full, cut in zip(whole, short, strict=True):
        assert len(cut["predict_input_ids"]) <= 16 < len(full["predict_input_ids"]) == full["predict_input_tokens"]
        assert cut["predict_input_tokens"] >= full["predict_input_tokens"]
        assert cut["predict_input_ids"][-tail:] == full["predict_input_ids"][-tail:]
        assert len(cut["rationale_ids"]) == 6 and cut["rationale_ids"][-1] == layout.end
        assert cut["rationale_ids"][:5] == full["rationale_ids"][:5]


def test_the_two_texts_of_a_pair_stand_on_lines_of_their_own(demo_data, tokenizer):
    row = demo_data.examples["test"].select([0]).map(lambda _: {"input": f"It rains.{SEGMENT_SEPARATOR}It is wet."})
    made = tokenize_examples(row, tokenizer, "dss", layout=sequence_layout(tokenizer))
    assert tokenizer.decode(made[0]["predict_input_ids"]).strip() == "predict: It rains.\nIt is wet."


def shared_student(shape, tokenizer, **changes) -> Student:
    "A student whose tasks are named last."
    model = model_of(shape, vocab_size=len(tokenizer), **changes)
    return Student(model, tokenizer, shape, sequence_layout(tokenizer, PromptOptions(share=True)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["mi", "finetune"]) # of the second one the prompts have no task in them
def test_a_shared_prompt_is_two_passes(demo_data, tokenizer, shape, method):
    student = shared_student(shape, tokenizer, **({"sliding_window": 512} if "gemma" in shape else {}))
    rows = demo_data.examples["train"].select(range(5))
    batch = TwoTaskCollator(student.pad_token)(
        tokenize_examples(rows, tokenizer, method, layout=student.layout).to_list())
    losses, gradients = [], []
    for family in (student.family, CAUSAL):
        student.model.zero_grad()
        predict, explain = family.forward_tasks(student.model, batch)
        terms = vocabulary_pass("fused", predict.hidden, predict.labels, explain.hidden, explain.labels,
                                *family.head(student.model), pool="target", softcap=predict.softcap)
        (terms.total + (predict.encoder.square().sum(-1) * predict.encoder_mask).mean()
         + (explain.encoder.square().sum(-1) * explain.encoder_mask).mean()).backward()
        losses.append(terms.losses)
        gradients.append({name: p.grad.clone() for name, p in student.model.named_parameters()})
    assert student.family.route(student.model).endswith("the prompt shared by both tasks")
    for name, value in losses[1].items():
        torch.testing.assert_close(losses[0][name], value, rtol=1e-5, atol=1e-5)
    for name, value in gradients[1].items():
        assert (gradients[0][name] - value).norm() <= 1e-5 * (value.norm() + gradients[1]["model.norm.weight"].norm()
                                                              if "model.norm.weight" in gradients[1] else 10), name


def test_the_shared_part_is_read_once(demo_data, tokenizer):
    student, seen = shared_student("llama", tokenizer), []
    rows = demo_data.examples["train"].select(range(5))
    tokens = tokenize_examples(rows, tokenizer, "mi", layout=student.layout)
    batch = TwoTaskCollator(student.pad_token)(tokens.to_list())
    hook = student.model.model.register_forward_pre_hook(
        lambda module, _, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True)
    student.family.forward_tasks(student.model, batch)
    CAUSAL.forward_tasks(student.model, batch)
    hook.remove()
    once, *twice = seen
    assert len(twice) == 2 and once < sum(twice) - batch["predict_input_ids"].shape[1] // 2


def test_where_a_prompt_is_not_shared(demo_data, tokenizer):
    student = shared_student("llama", tokenizer)
    student.model.config._attn_implementation = "flex_attention"
    again = Student(student.model, tokenizer, "flex", student.layout)
    assert again.family.forward_tasks is CAUSAL.forward_tasks
    assert again.route == "transformers' own forward; no prompt is shared with flex_attention attention"
    narrow, seen = shared_student("gemma2", tokenizer, sliding_window=8), []
    batch = TwoTaskCollator(0)(tokenize_examples(demo_data.examples["train"].select(range(2)), tokenizer, "mi",
                                                 layout=narrow.layout).to_list())
    narrow.model.model.register_forward_pre_hook(lambda module, _: seen.append(1))
    narrow.family.forward_tasks(narrow.model, batch)
    assert len(seen) == 2 # the window would measure the second branch's distance along the sequence


def test_a_run_with_a_shared_prompt(tmp_path, demo_data, monkeypatch):
    from cotmi.evaluation.evaluator import evaluate_student

    monkeypatch.setenv("COTMI_EVALUATE_EMBEDDING_MODEL", "")
    config = tiny_run(student="builtin:tiny-causal", share_prompt=True, max_steps=2, eval_steps=2, estimate_mi=False,
                      generation_max_length=6)
    result = train(config, demo_data, tmp_path, progress=False)
    assert result.route == "transformers' own forward, the prompt shared by both tasks"
    back = load_student(str(tmp_path / "student"))
    assert back.layout == result.student.layout and back.layout.task_last
    assert evaluate_student(back, demo_data, config, progress=False).figures["test/examples"]


def test_names_of_tasks_last_for_every_method(demo_data, tokenizer):
    layout = TextLayout("\n", after="\n", end=1, task_last=True)
    row = demo_data.examples["test"].select([0])
    for name, method in METHODS.items():
        text = tokenizer.decode(tokenize_examples(row, tokenizer, name, layout=layout)[0]["predict_input_ids"])
        assert text.rstrip().endswith("predict:" if method.explains else row[0]["input"][-8:])
