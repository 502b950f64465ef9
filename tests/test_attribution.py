"""Input × gradient, at one place and on a way, against finite differences through `inputs_embeds`, in float64."""

import pytest
import torch
import transformers as hf
from helpers_small_students import MODELS, WORDS

from cotmi.evaluation.attribution import token_attribution
from cotmi.students.student import family_for

SMALL = {**MODELS,
         "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(
             vocab_size=WORDS, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
             decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
             scale_embedding=True, pad_token_id=0, eos_token_id=1, bos_token_id=2, decoder_start_token_id=1)),
         "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(
             vocab_size=WORDS, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=1)),
         "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(
             vocab_size=WORDS, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
             num_key_value_heads=1, head_dim=8, final_logit_softcapping=3.0, pad_token_id=0))}
INPUT, TARGET, START = [5, 17, 5, 42, 1], [9, 30, 11, 1], 2


def read(model):
    "What a model reads: embeddings of each sequence in turn, and how its logits follow from them."
    if not model.config.is_encoder_decoder:
        tokens = torch.tensor([INPUT + TARGET[:-1]])
        last = len(INPUT) - 1
        return [model.get_input_embeddings()(tokens)], lambda made: model(inputs_embeds=made[0]).logits[0, last:]
    behind = model.prepare_decoder_input_ids_from_labels(labels=torch.tensor([TARGET]))
    given = [model.get_encoder().get_input_embeddings()(torch.tensor([INPUT])),
             model.get_decoder().get_input_embeddings()(behind)]
    return given, lambda made: model(inputs_embeds=made[0], decoder_inputs_embeds=made[1]).logits[0]


def by_differences(model, share=1.0):
    "The score of shortened embeddings, and how it moves as each token's embedding grows: central differences."
    given, logits = read(model)
    given = [share * each for each in given]
    def score(made):
        counted = torch.tensor(TARGET)[START:, None]
        return float(logits(made)[START:].log_softmax(-1).gather(1, counted).sum())
    slopes = []
    for part, embeddings in enumerate(given):
        for place in range(embeddings.shape[1]):
            moved = []
            for step in (1e-5, -1e-5):
                made = [each.clone() for each in given]
                made[part][0, place] *= 1 + step
                moved.append(score(made))
            slopes.append((moved[0] - moved[1]) / 2e-5 / share)
    return score(given), slopes


@pytest.fixture
def float64_throughout(monkeypatch):
    "Norms and attention compute in float32, too roughly for differences; here they stay as they are given."
    cast = torch.Tensor.to
    def to(self, *args, **kwargs):
        args = [self.dtype if arg is torch.float32 and self.is_floating_point() else arg for arg in args]
        return cast(self, *args, **kwargs)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: to(self, torch.float32))
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda self, dim=-1, dtype=None: torch.softmax(self, dim))


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", SMALL)
def test_attribution_is_what_finite_differences_say(name, steps, float64_throughout):
    torch.manual_seed(0)
    model = SMALL[name]().double().eval()
    for weight in model.parameters(): # so that something is worth a difference
        weight.data += 0.3 * torch.randn_like(weight)
    made = token_attribution(model, family_for(model.config), INPUT, TARGET, START, steps)
    with torch.no_grad():
        places = [1.0] if steps == 1 else [0.125, 0.375, 0.625, 0.875]
        slopes = torch.tensor([by_differences(model, share)[1] for share in places]).mean(0).tolist()
        score, _ = by_differences(model)
    assert made.score == pytest.approx(score, abs=1e-9)
    assert made.inputs == pytest.approx(slopes[:len(INPUT)], rel=1e-6, abs=1e-6)
    assert made.target == pytest.approx([*slopes[len(slopes) - len(TARGET) + 1:], 0.0], rel=1e-6, abs=1e-6)
    assert max(map(abs, made.target)) > 1e-3
    assert all(weight.grad is None for weight in model.parameters()) # nothing is left behind
    assert not any(part._forward_hooks for part in model.modules())
