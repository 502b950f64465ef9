"Tiny random students of several families and rows for them, without tokenizer, network or data set."
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, T5Config, T5ForConditionalGeneration

from cotmi.students.batches import TwoTaskCollator
from cotmi.students.layout import TextLayout
from cotmi.students.student import Student
from cotmi.training.run_config import RunConfig
from cotmi.training.step import CotModule

WORDS = 60
PLAIN = TextLayout()
METHODS = [("finetune", {}), ("dss", {}), ("mi", {"objective": "paper-masked"}), ("mi", {"objective": "paper-code"}),
           ("mi", {"objective": "infonce", "features": "decoder"}), ("mi", {"objective": "nwj", "features": "vocab"}),
           ("mi", {"objective": "barber-agakov", "features": "encoder"})]
NAMES = ["-".join([method, *values.values()]) for method, values in METHODS]


def small_t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(
        vocab_size=WORDS, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0, pad_token_id=0,
        eos_token_id=1)).eval()


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=2, eos_token_id=1)).eval()


MODELS = {"t5": small_t5, "llama": small_llama}


class NoWords:
    "Stands where a tokenizer would, for students whose words mean nothing."
    pad_token_id, eos_token_id = 0, 1

    def batch_decode(self, answers, skip_special_tokens=True):
        return [" ".join(map(str, ids)) for ids in answers]


def small_student(model: PreTrainedModel) -> Student:
    return Student(model, NoWords(), "small", PLAIN)


def rows(count: int = 6, seed: int = 0, longest: int = 14) -> list[dict[str, list[int]]]:
    "Tokenised examples of uneven lengths; every target ends."
    random = torch.Generator().manual_seed(seed)

    def ids(low, high):
        length = int(torch.randint(low, high, (1,), generator=random))
        return [*torch.randint(3, WORDS, (length,), generator=random).tolist(), 1]

    return [{"predict_input_ids": ids(3, longest), "label_ids": ids(1, 4), "explain_input_ids": ids(3, longest),
             "rationale_ids": ids(2, longest)} for _ in range(count)]


def batch(method: str = "mi", device: str = "cpu", **kwargs) -> dict[str, torch.Tensor]:
    made = TwoTaskCollator(0)(rows(**kwargs))
    return {name: value.to(device) for name, value in made.items() if method != "finetune" or "predict" in name}


def module(model: PreTrainedModel, method: str, device: str = "cpu", **values) -> CotModule:
    "What is trained, with the critic of the objective, on a device."
    return CotModule(small_student(model), RunConfig(dataset="demo", method=method, **values)).to(device)


def losses(made: CotModule, method: str, device: str = "cpu") -> tuple[torch.Tensor, dict]:
    return made(**batch(method, device))
