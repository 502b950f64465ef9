"Gate and self-check of the packed route: where they close it, answers stay the same and one line says so."
import pytest
import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5 import modeling_t5

from cotmi.students import t5_fast_path
from cotmi.students.batches import TwoTaskCollator
from cotmi.students.builtin import builtin_student
from cotmi.students.encoder_decoder import ENCODER_DECODER
from cotmi.students.generation import generate_ids, target_log_likelihoods
from cotmi.students.student import Student, family_of
from cotmi.students.t5_fast_path import T5_PACKED
from cotmi.training.run_config import RunConfig
from cotmi.training.step import CotModule

SMALL = dict(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=60, dropout_rate=0.0,
             decoder_start_token_id=0)
KINDS = {"v1.1": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
         "v1.0": dict(feed_forward_proj="relu")}
TEXTS = ["Ann has 3 pens and finds 4 more.", "Where does a fish live? river bank, mall", "3 + 4 = 7.", "answer: 7"] * 3


@pytest.fixture(autouse=True)
def nothing_said_yet():
    t5_fast_path._warn_once.cache_clear()
    yield
    t5_fast_path._warn_once.cache_clear()


def small_t5(kind: str = "v1.1") -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(**SMALL, **KINDS[kind])).eval()


def random_batch(seed: int) -> dict[str, torch.Tensor]:
    "Four examples of uneven lengths."
    random = torch.Generator().manual_seed(seed)

    def ids(low, high):
        length = int(torch.randint(low, high, (1,), generator=random))
        return [*torch.randint(2, 60, (length,), generator=random).tolist(), 1]

    rows = [{"predict_input_ids": ids(3, 12), "label_ids": ids(0, 4), "explain_input_ids": ids(3, 12),
             "rationale_ids": ids(1, 14)} for _ in range(4)]
    return TwoTaskCollator(0)(rows)


def trained(steps: int = 3) -> tuple[Student, list[float]]:
    "A student after a few steps of every term, and its losses."
    student = Student(small_t5(), None, "small")
    config = RunConfig(dataset="demo", method="mi", beta=0.1, gamma=0.01)
    module = CotModule(student, config).train()
    optimiser, losses = torch.optim.SGD(module.parameters(), lr=0.1), []
    for step in range(steps):
        torch.manual_seed(step) # the bottleneck's noise
        loss, _ = module(**random_batch(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    student.model.eval()
    return student, losses


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == t5_fast_path.__name__]


def test_the_route_is_open_here_and_says_so(caplog):
    for kind in KINDS:
        family = family_of(small_t5(kind))
        assert family is T5_PACKED
        assert family.route(small_t5(kind)) == f"packed T5 (transformers {transformers.__version__})"
    assert builtin_student("tiny", TEXTS).family is T5_PACKED
    assert not warnings_of(caplog)


def test_another_release_closes_the_gate_and_changes_no_figure(monkeypatch, caplog):
    packed, packed_losses = trained()
    monkeypatch.setattr(t5_fast_path, "TESTED", ("5.22",))
    plain, plain_losses = trained()
    assert packed.family is T5_PACKED and plain.family.forward_tasks is ENCODER_DECODER.forward_tasks
    assert plain_losses == pytest.approx(packed_losses, rel=1e-5)
    for (name, own), other in zip(plain.model.named_parameters(), packed.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    asked = [[5, 9, 1], [7, 8, 9, 10, 11, 1], [3, 1]]
    assert plain.family.generate(plain.model, asked, 8, 2, "") == packed.family.generate(packed.model, asked, 8, 2, "")
    trained()
    said = warnings_of(caplog)
    assert len(said) == 1, "one line a process"
    assert transformers.__version__ in said[0] and "5.22" in said[0] and "slower" in said[0]
    assert plain.route.startswith("transformers' own forward: transformers ") and "5.22" in plain.route


def test_another_release_changes_no_answer(monkeypatch):
    answers, likelihoods = [], []
    for tested in (t5_fast_path.TESTED, ("5.22",)):
        monkeypatch.setattr(t5_fast_path, "TESTED", tested)
        student = builtin_student("tiny", TEXTS, seed=2)
        inputs = student.tokenizer(TEXTS[:3])["input_ids"]
        answers.append(generate_ids(student, inputs, 10, batch_size=2))
        likelihoods.append(target_log_likelihoods(student, inputs, [inputs[:2], [], inputs], batch_size=2))
    assert answers[0] == answers[1]
    for packed, plain in zip(*likelihoods, strict=True):
        assert packed == pytest.approx(plain, abs=1e-4)


def shifted(own):
    "A forward whose result is half a percent larger."
    return lambda self, *args: own(self, *args) * 1.005


@pytest.mark.parametrize("part", [modeling_t5.T5LayerNorm, modeling_t5.T5DenseGatedActDense])
def test_a_t5_that_computes_something_else_goes_the_long_way(monkeypatch, caplog, part):
    monkeypatch.setattr(part, "forward", shifted(part.forward))
    student = Student(small_t5(), None, "small")
    assert student.family.forward_tasks is ENCODER_DECODER.forward_tasks
    assert student.route == "transformers' own forward: its states differ from those of the model's own forward"
    assert len(warnings_of(caplog)) == 1


def test_a_t5_that_answers_otherwise_goes_the_long_way(monkeypatch, caplog):
    def generate(self, input_ids, **kwargs):
        return torch.full((len(input_ids), 3), 7)

    monkeypatch.setattr(T5ForConditionalGeneration, "generate", generate)
    assert "greedy answers differ" in Student(small_t5(), None, "small").route
    assert len(warnings_of(caplog)) == 1


def test_a_t5_whose_parts_are_missing_goes_the_long_way(caplog):
    model = small_t5()
    for block in model.encoder.block: # a layer norm that keeps its epsilon elsewhere
        norm = block.layer[0].layer_norm
        norm.epsilon = norm.__dict__.pop("variance_epsilon")
        norm.forward = torch.nn.functional.normalize
    assert Student(model, None, "small").route.startswith("transformers' own forward: it fails on a tiny batch")
    assert len(warnings_of(caplog)) == 1


class Louder(T5ForConditionalGeneration):
    "A T5 with a forward of its own."
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def test_other_models_have_nothing_to_check(caplog):
    model = Louder(T5Config(**SMALL, **KINDS["v1.1"]))
    assert family_of(model) is ENCODER_DECODER
    assert family_of(model).route(model) == "transformers' own forward"
    eager = small_t5()
    eager.set_attn_implementation("eager")
    assert Student(eager, None, "small").route == "transformers' own forward: its attention is eager"
    assert not warnings_of(caplog)


def test_the_check_leaves_the_model_and_the_random_numbers_alone():
    model = small_t5().train()
    model.encoder.eval()
    modes = [module.training for module in model.modules()]
    before, state = {name: p.clone() for name, p in model.named_parameters()}, torch.get_rng_state()
    assert family_of(model) is T5_PACKED
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())
    assert torch.equal(state, torch.get_rng_state())
