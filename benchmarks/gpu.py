"""What a GPU shows: a training step beside the published formula, and the output head of a wide vocabulary.

    python -m benchmarks.gpu --out FOLDER            every shape and method, about four minutes on an H100
    python -m benchmarks.gpu --out FOLDER --quick    two small shapes for a second each, on any device

Students have random weights, and rows the lengths of CommonsenseQA with the teacher's rationales; speed depends on
neither weights nor words. Writes gpu.json and gpu.md into FOLDER and prints the table. What is measured and how:
benchmarks/README.md.
"""
import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, T5Config, T5ForConditionalGeneration

from cotmi.students.batches import IGNORED, LengthGroupedBatches, TwoTaskCollator
from cotmi.students.causal import CAUSAL, one_sequence
from cotmi.students.encoder_decoder import ENCODER_DECODER
from cotmi.students.family import StudentFamily
from cotmi.training.fused_linear_loss import vocabulary_pass
from cotmi.training.losses import term_weights
from cotmi.training.master_weights import CheckpointedMasterAdamW

ALPHA, BETA, CLIP = 0.5, 0.1, 1.0
# Tokens of input, label, input, rationale: mean, spread, least, most of CQA's train part, as benchmarks.text has it.
LENGTHS = ((56.5, 8.5, 39, 99), (2.9, 0.95, 2, 7), (55.5, 8.5, 38, 98), (30.4, 5.4, 18, 62))
COLUMNS = ("predict_input_ids", "label_ids", "explain_input_ids", "rationale_ids")


@dataclass(frozen=True)
class Shape:
    "A student with random weights, and the examples of a step."
    name: str
    family: StudentFamily
    sizes: dict[str, Any]
    batch: int

    @property
    def words(self) -> int: return self.sizes["vocab_size"]

    def make(self, device: str) -> PreTrainedModel:
        "The student, made where it is to be trained."
        torch.manual_seed(0)
        with torch.device(device):
            if self.family is CAUSAL:
                return Qwen2ForCausalLM(Qwen2Config(**self.sizes)).train()
            return T5ForConditionalGeneration(T5Config(**self.sizes, **V11)).train()


V11 = dict(feed_forward_proj="gated-gelu", dropout_rate=0.1, tie_word_embeddings=False, decoder_start_token_id=0,
           pad_token_id=0, eos_token_id=1)


def t5(name: str, batch: int, width: int, feed: int, layers: int, heads: int, words: int = 32_128) -> Shape:
    "The shape of a T5 v1.1."
    return Shape(name, ENCODER_DECODER, dict(d_model=width, d_kv=64, d_ff=feed, num_layers=layers, num_heads=heads,
                                             vocab_size=words), batch)


QWEN = dict(vocab_size=151_936, hidden_size=896, intermediate_size=4_864, num_hidden_layers=24, num_attention_heads=14,
            num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=1_024)
SHAPES = (t5("t5-v1.1-small, 77M", 64, 512, 1_024, 8, 6), t5("t5-v1.1-base, 248M", 64, 768, 2_048, 12, 12),
          t5("t5-v1.1-large, 783M", 64, 1_024, 2_816, 24, 16), Shape("Qwen2.5-0.5B, 494M", CAUSAL, QWEN, 32))
SMALL = (t5("t5, tiny", 8, 64, 128, 2, 2, 2_000),
         Shape("Qwen2, tiny", CAUSAL, QWEN | dict(vocab_size=2_000, hidden_size=64, intermediate_size=128,
                                                  num_hidden_layers=2, num_attention_heads=2), 8))


def made_rows(count: int, words: int, seed: int = 0) -> tuple[list[dict[str, list[int]]], np.ndarray]:
    "Tokenised rows of both tasks, and their lengths [count, 4]."
    random = np.random.default_rng(seed)
    lengths = np.stack([np.clip(random.normal(mean, spread, count).round(), least, most)
                        for mean, spread, least, most in LENGTHS], 1).astype(int)
    lengths[:, 2] = lengths[:, 0] - 1 # the same input behind another prefix
    def tokens(n: int) -> list[int]:
        return [*random.integers(3, words, n - 1).tolist(), 1]
    return [{name: tokens(n) for name, n in zip(COLUMNS, row, strict=True)} for row in lengths], lengths


@dataclass
class Side:
    "One way to take a step."
    name: str # In the table
    method: str # dss or mi
    precision: str # float32, bf16 (autocast) or bf16 weights
    published: bool = False # The published formula in plain PyTorch, else this package
    adapter: str = "" # Of peft; all weights if empty


def published_loss(shape: Shape, model: PreTrainedModel, batch: dict[str, Tensor], method: str) -> Tensor:
    """The authors' step on today's transformers: a forward pass a task with full logits and its cross-entropy; for mi
    softmax of both, maximum over all target positions, and the cross-entropy of the probabilities taken as logits."""
    logits, losses = [], []
    for task in ("predict", "explain"):
        ids, mask, labels = (batch[f"{task}_{part}"] for part in ("input_ids", "attention_mask", "labels"))
        if shape.family is CAUSAL:
            tokens, where = one_sequence(ids, mask, labels)
            out = model(input_ids=tokens, use_cache=False).logits # of every position, as a causal model gives them
            out = out.gather(1, where.unsqueeze(2).expand(-1, -1, out.shape[2]))
        else:
            out = model(input_ids=ids, attention_mask=mask, labels=labels).logits
        logits.append(out)
        losses.append(F.cross_entropy(out.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED))
    total = ALPHA * losses[0] + (1 - ALPHA) * losses[1]
    if method == "mi":
        z, v = (F.softmax(each.float(), dim=-1).max(dim=1).values for each in logits)
        total = total + BETA * F.cross_entropy(v, z.detach())
    return total


def our_loss(shape: Shape, model: PreTrainedModel, batch: dict[str, Tensor], method: str) -> Tensor:
    "This package's step: the family's forward passes and the fused vocabulary pass."
    predict, explain = shape.family.forward_tasks(model, batch, None, False)
    return vocabulary_pass("fused", predict.hidden, predict.labels, explain.hidden, explain.labels,
                           *shape.family.head(model), pool="target" if method == "mi" else None,
                           weights=term_weights(ALPHA, BETA)).total


def order(side: Side, lengths: np.ndarray, batch: int) -> Iterator[list[int]]:
    "Row numbers of whole batches without end: at random for the published side, of like length for ours."
    if side.published:
        random = np.random.default_rng(0)
        while True:
            mixed = random.permutation(len(lengths))
            yield from (mixed[at:at + batch].tolist() for at in range(0, len(mixed) - batch + 1, batch))
    sampler, epoch = LengthGroupedBatches(lengths, batch, 0), 0
    while True:
        sampler.set_epoch(epoch := epoch + 1)
        yield from (rows for rows in sampler if len(rows) == batch)


class Stepper:
    "A student, its optimiser and its batches; each call takes a step."
    def __init__(self, shape: Shape, side: Side, device: str, rows: list[dict], lengths: np.ndarray):
        self.shape, self.side, self.device, self.rows, self.lengths = shape, side, device, rows, lengths
        self.model = shape.make(device)
        if side.precision == "bf16 weights":
            self.model.to(torch.bfloat16)
        if side.adapter:
            from cotmi.students.adapters import AdapterOptions, add_adapter  # late: needs peft
            self.adapter = add_adapter(self.model, AdapterOptions(side.adapter, rank=16, alpha=32, target="all-linear"))
        self.trained = [value for value in self.model.parameters() if value.requires_grad]
        options = dict(lr=5e-5, weight_decay=0.0, fused=True)
        narrow = side.precision == "bf16 weights"
        self.optimiser = (CheckpointedMasterAdamW if narrow else torch.optim.AdamW)(self.trained, **options)
        self.order, self.collate = order(side, lengths, shape.batch), TwoTaskCollator(0)
        self.weights = sum(value.numel() * value.element_size() for value in self.model.parameters())

    def prepare(self) -> tuple[dict[str, Tensor], list[int]]:
        "The next batch, on the host, and its rows."
        chosen = next(self.order)
        batch = self.collate([self.rows[i] for i in chosen])
        return {name: value.pin_memory() if self.device == "cuda" else value for name, value in batch.items()}, chosen

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        "One optimiser step; its loss, where it was computed."
        batch = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        wide = self.side.precision == "float32"
        with nullcontext() if wide else torch.autocast(self.device, torch.bfloat16):
            loss = (published_loss if self.side.published else our_loss)(self.shape, self.model, batch,
                                                                        self.side.method)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, CLIP)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss.detach()


def useful_flops(shape: Shape, lengths: np.ndarray, trained: bool = True) -> float:
    """Operations of the matrix products over real tokens of these rows [n, 4], forward and backward: six a weight and
    token (four where the weights are frozen), and the attention's own; padding and recomputation count for nothing."""
    inputs, targets = lengths[:, ::2].astype(float), lengths[:, 1::2].astype(float)
    c, each = shape.sizes, 6 if trained else 4
    if shape.family is CAUSAL:
        heads = c["hidden_size"] // c["num_attention_heads"]
        layer = (2 * c["hidden_size"] ** 2 + 2 * c["hidden_size"] * heads * c["num_key_value_heads"]
                 + 3 * c["hidden_size"] * c["intermediate_size"])
        tokens = inputs + targets - 1
        scores = 12 * c["num_hidden_layers"] * c["hidden_size"] * (tokens**2 / 2).sum()
        head = targets.sum() * c["hidden_size"] * c["vocab_size"]
        return each * (tokens.sum() * c["num_hidden_layers"] * layer + head) + scores
    inner, width, layers = c["num_heads"] * c["d_kv"], c["d_model"], c["num_layers"]
    attention, feed = 4 * width * inner, 3 * width * c["d_ff"]
    encoder, decoder = layers * (attention + feed + 2 * width * inner), layers * (attention + 2 * width * inner + feed)
    scores = 12 * layers * inner * (inputs**2 + targets**2 / 2 + inputs * targets).sum()
    return each * (inputs.sum() * encoder + targets.sum() * (decoder + width * c["vocab_size"])) + scores


@dataclass
class Device:
    "Waits, memory and rates of where the steps run."
    name: str # cuda or cpu
    facts: dict[str, Any] = field(default_factory=dict)

    def wait(self):
        if self.name == "cuda":
            torch.cuda.synchronize()

    def clear(self):
        gc.collect()
        if self.name == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def held(self) -> float:
        "MB of tensors now; NaN on a CPU."
        return torch.cuda.memory_allocated() / 2**20 if self.name == "cuda" else float("nan")

    def peak(self) -> float:
        "MB of tensors at the most since `clear`; NaN on a CPU."
        return torch.cuda.max_memory_allocated() / 2**20 if self.name == "cuda" else float("nan")

    def seconds(self, work: Callable[[], Any], repeats: int) -> float:
        "Median time of a piece of work."
        times = []
        for _ in range(repeats + 2):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times[2:])


def product_rate(device: Device, dtype: torch.dtype, size: int) -> float:
    "Tera-operations a second of a square matrix product."
    a, b = (torch.randn(size, size, device=device.name, dtype=dtype) for _ in range(2))
    return 2 * size**3 / device.seconds(lambda: a @ b, 10) / 1e12


def describe(device: Device, quick: bool) -> dict[str, Any]:
    "What the figures were measured on."
    size = 512 if quick else 8_192
    on_gpu = device.name == "cuda"
    properties = torch.cuda.get_device_properties(0) if on_gpu else None
    return {"device": properties.name if properties else platform.processor() or "CPU",
            "memory_gib": round(properties.total_memory / 2**30) if properties else None,
            "bf16_tflops": product_rate(device, torch.bfloat16, size),
            "float32_tflops": product_rate(device, torch.float32, size), "tf32": torch.backends.cuda.matmul.allow_tf32,
            "torch": torch.__version__, "cuda": torch.version.cuda, "transformers": transformers.__version__,
            "python": platform.python_version(), "product": f"{size} x {size}"}


def measure_step(device: Device, shape: Shape, side: Side, rows: list[dict], lengths: np.ndarray, seconds: float,
                 warm_up: int) -> dict[str, Any]:
    "Speed and memory of a side's steps; what it needs in memory where that is more than there is."
    device.clear()
    made = {"shape": shape.name, "batch": shape.batch, **asdict(side)}
    try:
        step = Stepper(shape, side, device.name, rows, lengths)
        prepared = [step.prepare() for _ in range(24)]
        for batch, _ in prepared[:warm_up]:
            loss = step(batch)
        device.wait()
        before = device.held() # weights and optimiser; gradients are gone
        device.clear()
        spent, taken, at = 0.0, [], 0
        while spent < seconds or at < 4:
            block = [prepared[(at + i) % len(prepared)] for i in range(2)]
            start = time.perf_counter()
            for batch, _ in block:
                loss = step(batch)
            device.wait()
            taken.append(((here := time.perf_counter() - start), [i for _, chosen in block for i in chosen]))
            spent, at = spent + here, at + len(block)
    except torch.OutOfMemoryError:
        return made | {"out_of_memory": True}
    chosen = [i for _, each in taken for i in each]
    flops = useful_flops(shape, lengths[chosen], trained=not side.adapter)
    speeds = sorted(len(each) / here for here, each in taken)
    result = made | {
        "steps": at, "examples_per_second": len(chosen) / spent, "low": speeds[0], "high": speeds[-1],
        "tokens_per_second": float(lengths[chosen].sum() / spent), "useful_tflops": flops / spent / 1e12,
        "share_of_rate": flops / spent / 1e12 / device.facts["bf16_tflops"], "weights_mb": step.weights / 2**20,
        "held_mb": before, "peak_mb": device.peak(), "above_mb": device.peak() - before, "loss": float(loss)}
    del step, prepared, loss, batch, block
    return result


def sides_of(shape: Shape, adapters: bool) -> list[Side]:
    "What is measured of a shape."
    made = []
    for method in ("dss", "mi"):
        made += [Side("published formula", method, "bf16", published=True), Side("cotmi", method, "bf16")]
    made.append(Side("cotmi", "mi", "bf16 weights"))
    if adapters and shape.family is CAUSAL:
        made.append(Side("cotmi, LoRA 16", "mi", "bf16 weights", adapter="lora"))
    return made


def head_cost(device: Device, implementation: str, dtype: torch.dtype, words: int, width: int, batch: int, length: int
              ) -> dict[str, Any]:
    "Time and memory of one vocabulary pass with its gradients, above its inputs."
    torch.manual_seed(0)
    device.clear()
    made = {"pass": implementation, "precision": str(dtype).removeprefix("torch."), "words": words, "width": width,
            "batch": batch, "rationale": length}
    def tensor(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device.name)
    states = [tensor(batch, n, width).requires_grad_() for n in (4, length)]
    labels = [torch.randint(0, words, (batch, n), device=device.name) for n in (4, length)]
    weight = tensor(words, width).mul_(width**-0.5).requires_grad_()
    def once():
        with nullcontext() if dtype is torch.float32 else torch.autocast(device.name, dtype):
            vocabulary_pass(implementation, states[0], labels[0], states[1], labels[1], weight, pool="target",
                            weights=term_weights(ALPHA, BETA)).total.backward()
        for each in (*states, weight):
            each.grad = None
    try:
        seconds = device.seconds(once, 5)
        before = device.held()
        device.clear()
        once()
        device.wait()
    except torch.OutOfMemoryError:
        return made | {"out_of_memory": True}
    return made | {"seconds": seconds, "above_mb": device.peak() - before}


def number(value: Any, form: str) -> str:
    "A figure of the table; a dash where there is none."
    return "–" if value is None or value != value else format(value, form)


def tables(result: dict[str, Any]) -> str:
    "The figures as Markdown."
    facts = result["device"]
    lines = [f"On {facts['device']}: PyTorch {facts['torch']}, transformers {facts['transformers']}; a product of "
             f"{facts['product']} runs at {facts['bf16_tflops']:.1f} TFLOP/s in bfloat16 and "
             f"{facts['float32_tflops']:.1f} in float32.", "",
             "| student | batch | method | side | precision | examples/s | tokens/s | of bf16 rate | peak MB | above "
             "weights and optimiser MB | ratio |", "|---|---|---|---|---|---|---|---|---|---|---|"]
    for row in result["steps"]:
        start = f"| {row['shape']} | {row['batch']} | {row['method']} | {row['name']} | {row['precision']} |"
        if row.get("out_of_memory"):
            lines.append(f"{start} out of memory | | | | | |")
            continue
        base = next((each for each in result["steps"] if each["published"] and "examples_per_second" in each
                     and (each["shape"], each["method"]) == (row["shape"], row["method"])), None)
        ratio = row["examples_per_second"] / base["examples_per_second"] if base else None
        lines.append(f"{start} {row['examples_per_second']:,.0f} | {row['tokens_per_second']:,.0f} | "
                     f"{row['share_of_rate']:.1%} | {number(row['peak_mb'], ',.0f')} | "
                     f"{number(row['above_mb'], ',.0f')} | {number(ratio, '.2f')} |")
    lines += ["", "| vocabulary pass | precision | words | width | batch | rationale | ms | above inputs MB |",
              "|---|---|---|---|---|---|---|---|"]
    for row in result["head"]:
        cost = ("out of memory | " if row.get("out_of_memory") else
                f"{row['seconds'] * 1e3:,.1f} | {number(row['above_mb'], ',.0f')}")
        lines.append(f"| {row['pass']} | {row['precision']} | {row['words']:,} | {row['width']} | {row['batch']} | "
                     f"{row['rationale']} | {cost} |")
    return "\n".join(lines) + "\n"


def write(result: dict[str, Any], folder: Path):
    "The figures so far, in both forms."
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(result, indent=2) + "\n")
    (folder / "gpu.md").write_text(tables(result))


def parsed() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small shapes, a moment each")
    parser.add_argument("--seconds", type=float, default=2.5, help="of steps for each side, warm-up aside")
    parser.add_argument("--adapters", action=argparse.BooleanOptionalAction, default=True, help="LoRA too; needs peft")
    parser.add_argument("--limit", type=float, default=230.0, help="seconds after which no further side is begun")
    return parser.parse_args()


def main():
    "Measure, write and print."
    asked, started = parsed(), time.perf_counter()
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no GPU here that PyTorch can use; --device cpu --quick tries the script.")
    device = Device(asked.device)
    device.facts |= describe(device, asked.quick)
    result: dict[str, Any] = {"device": device.facts, "steps": [], "head": [], "left_out": []}
    sizes = (2_000, 64, 4, 16) if asked.quick else (151_936, 896, 16, 64)
    for dtype in (torch.bfloat16, torch.float32):
        for implementation in ("plain", "fused"):
            result["head"].append(head_cost(device, implementation, dtype, *sizes))
    count, seconds, warm_up = (200, 0.2, 1) if asked.quick else (2_000, asked.seconds, 4)
    for shape in SMALL if asked.quick else SHAPES:
        rows, lengths = made_rows(count, shape.words)
        for side in sides_of(shape, asked.adapters):
            if time.perf_counter() - started > asked.limit:
                result["left_out"].append(f"{shape.name}, {side.method}, {side.name}, {side.precision}")
                continue
            result["steps"].append(measure_step(device, shape, side, rows, lengths, seconds, warm_up))
            print(json.dumps(result["steps"][-1]), flush=True)
            write(result, asked.out)
    result["seconds"] = time.perf_counter() - started
    write(result, asked.out)
    print(tables(result))


if __name__ == "__main__":
    main()
