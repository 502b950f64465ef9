"""Decoder-only students: the vocabulary pass of a Qwen2.5-0.5B, what a shared prompt saves, and what LoRA saves.

    python -m benchmarks.causal            all three tables; the last line is a JSON object
    python -m benchmarks.causal --head     the vocabulary pass alone
    python -m benchmarks.causal --prompt   the shared prompt alone
    python -m benchmarks.causal --lora     LoRA beside all weights alone; needs peft

Tables go to benchmarks/results. What is measured and how: benchmarks/README.md.
"""
import argparse
import json
import statistics
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from datasets import disable_progress_bars
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.machine import describe, in_fresh_process, reset_peak, resident_mb
from benchmarks.sides import CLIP
from benchmarks.step import RESULTS
from benchmarks.text import make_tokenizer, split_rows
from cotmi.core import to_json, write_json, write_text
from cotmi.students.adapters import AdapterOptions, add_adapter, trained_values
from cotmi.students.batches import LengthGroupedBatches, TwoTaskCollator, example_lengths
from cotmi.students.causal import CAUSAL
from cotmi.students.layout import plain_layout
from cotmi.students.student import Student
from cotmi.students.tasks import tokenize_examples
from cotmi.training.fused_linear_loss import vocabulary_pass
from cotmi.training.losses import term_weights

HEAD = dict(words=151_936, width=896, batch=16, rationale=64, label=4) # of a Qwen2.5-0.5B
STUDENT = dict(hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=4)
WORDS = 32_128
SMALL = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
             num_key_value_heads=3, vocab_size=49_152, tie_word_embeddings=True) # of a SmolLM2-135M
TOKENS = dict(input=57, label=4, rationale=29) # means of CQA
TRAINED = {"all weights": None, "LoRA, rank 16, all linear layers": AdapterOptions("lora", 16, target="all-linear")}


def head_cost(implementation: str) -> dict:
    "Seconds and peak MB of one vocabulary pass with its gradients, above its inputs and their gradients."
    torch.manual_seed(0)
    lengths = HEAD["label"], HEAD["rationale"]
    states = [torch.randn(HEAD["batch"], n, HEAD["width"], requires_grad=True) for n in lengths]
    labels = [torch.randint(0, HEAD["words"], (HEAD["batch"], n)) for n in lengths]
    weight = torch.randn(HEAD["words"], HEAD["width"]).mul_(HEAD["width"]**-0.5).requires_grad_()
    reset_peak()
    before, start, worked = resident_mb(), time.perf_counter(), time.process_time()
    terms = vocabulary_pass(implementation, states[0], labels[0], states[1], labels[1], weight, pool="target",
                            weights=term_weights(0.5, 0.1))
    terms.total.backward()
    seconds, busy = time.perf_counter() - start, time.process_time() - worked
    gradients = (weight.numel() + sum(s.numel() for s in states)) * 4 / 2**20
    return {"seconds": seconds, "processor_seconds": busy, "mb": resident_mb(peak=True) - before - gradients,
            "total": terms.total.item(), "gradient_norm": weight.grad.norm().item()}


def step_of(model: LlamaForCausalLM, family, optimiser, batch) -> None:
    "One optimiser step of DSS."
    predict, explain = family.forward_tasks(model, batch, None, False)
    vocabulary_pass("fused", predict.hidden, predict.labels, explain.hidden, explain.labels,
                    *family.head(model), weights=term_weights(0.5, 0.0)).total.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def prompt_cost(dataset: str, rows: int, batch: int, steps: int) -> dict:
    "Processor seconds of steps on the same batches, the prompt shared and read twice, in turn."
    disable_progress_bars()
    (train,), source = split_rows(dataset)
    train = train.select(range(min(rows, len(train))))
    tokenizer = make_tokenizer(train)
    layout = plain_layout(tokenizer, share=True)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**STUDENT, vocab_size=WORDS, pad_token_id=0, eos_token_id=1)).train()
    student = Student(model, tokenizer, "random", layout)
    tokens = tokenize_examples(train, tokenizer, "dss", layout=layout)
    lengths, plain = example_lengths(tokens), tokens.remove_columns("id").to_list()
    optimiser, collate = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True), TwoTaskCollator(0)
    families = {"shared": student.family, "apart": replace(CAUSAL)}
    order, spent = iter(LengthGroupedBatches(lengths, batch)), {name: [] for name in families}
    for step in range(-1, steps):
        made = collate([plain[row] for row in next(order)])
        for name, family in families.items():
            worked = time.process_time()
            step_of(model, family, optimiser, made)
            if step >= 0:
                spent[name].append(time.process_time() - worked)
    ratios = [apart / shared for apart, shared in zip(spent["apart"], spent["shared"], strict=True)]
    return {"data": source, "batch": batch, "steps": steps, "parameters": student.parameters,
            "mean_tokens": np.round(lengths.mean(0), 1).tolist(), "ratio": statistics.median(ratios),
            "ratio_low": min(ratios), "ratio_high": max(ratios),
            **{f"{name}_seconds": statistics.median(each) for name, each in spent.items()}}


def random_rows(count: int, words: int) -> list[dict[str, list[int]]]:
    "Examples of CQA's mean lengths, in random tokens."
    random = np.random.default_rng(0)
    named = {"predict_input_ids": "input", "label_ids": "label", "explain_input_ids": "input",
             "rationale_ids": "rationale"}
    return [{column: random.integers(3, words, TOKENS[part]).tolist() for column, part in named.items()}
            for _ in range(count)]


def training_cost(trained: str, batch: int, steps: int) -> dict:
    "Peak MB of training steps of DSS above the model's weights, and their processor seconds."
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL, pad_token_id=0, eos_token_id=1)).train()
    made = TwoTaskCollator(0)(random_rows(batch, SMALL["vocab_size"]))
    reset_peak()
    before, weights = resident_mb(), sum(p.numel() for p in model.parameters()) * 4 / 2**20
    if TRAINED[trained]:
        add_adapter(model, TRAINED[trained])
    learns = [p for p in model.parameters() if p.requires_grad]
    optimiser, spent = torch.optim.AdamW(learns, lr=1e-4, fused=True), []
    for _ in range(steps):
        worked = time.process_time()
        step_of(model, CAUSAL, optimiser, made)
        spent.append(time.process_time() - worked)
    share, every = trained_values(model)
    return {"mb": resident_mb(peak=True) - before, "weights_mb": weights, "trained": share, "parameters": every,
            "processor_seconds": statistics.median(spent)}


def head_table(found: dict[str, dict]) -> list[str]:
    "Markdown lines, one for each side."
    lines = ["One vocabulary pass with the paper's term and its gradients: "
             f"{HEAD['words']:,} words, d {HEAD['width']}, batch {HEAD['batch']}, labels of "
             f"{HEAD['label']} and rationales of {HEAD['rationale']} tokens, float32; "
             "memory above inputs and gradients.", "",
             "| side | peak MB | processor s | s | total | norm of the head's gradient |", "|---|---|---|---|---|---|"]
    return lines + [f"| {name} | {side['mb']:.0f} | {side['processor_seconds']:.1f} | {side['seconds']:.1f} "
                    f"| {side['total']:.6f} | {side['gradient_norm']:.6f} |" for name, side in found.items()]


def prompt_table(found: dict) -> list[str]:
    "Markdown lines of the shared prompt."
    inputs, labels, _, rationales = found["mean_tokens"]
    return [f"A step of DSS, {found['parameters'] / 1e6:.1f}M parameters, Llama-shaped, {found['data']}, batch "
            f"{found['batch']}, mean tokens: input {inputs}, label {labels}, rationale {rationales}; median of "
            f"{found['steps']} steps of each side on the same batches in turn.", "",
            "| prompt | processor s a step |", "|---|---|", f"| read for each task | {found['apart_seconds']:.2f} |",
            f"| shared | {found['shared_seconds']:.2f} |", "",
            f"Ratio {found['ratio']:.2f} ({found['ratio_low']:.2f}–{found['ratio_high']:.2f})."]


def lora_table(found: dict[str, dict], batch: int, steps: int) -> list[str]:
    "Markdown lines of LoRA beside all weights."
    weights = next(iter(found.values()))["weights_mb"]
    lines = [f"Steps of DSS of a SmolLM2-135M's shape with random weights ({weights:.0f} MB in float32), batch "
             f"{batch}, {TOKENS['input']} tokens of input, {TOKENS['label']} of label, {TOKENS['rationale']} of "
             f"rationale; peak over {steps} steps above the weights: gradients, AdamW, activations, adapter.", "",
             "| trained | values | peak MB above weights | processor s a step |", "|---|---|---|---|"]
    return lines + [f"| {name} | {side['trained']:,} | {side['mb']:.0f} | {side['processor_seconds']:.1f} |"
                    for name, side in found.items()]


def parsed() -> argparse.Namespace:
    "The command's options; the three tables are all wanted where none is named."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", action="store_true", help="the vocabulary pass")
    parser.add_argument("--prompt", action="store_true", help="the shared prompt")
    parser.add_argument("--lora", action="store_true", help="LoRA beside all weights; needs peft")
    parser.add_argument("--rows", type=int, default=2_000, help="training rows for the shared prompt")
    parser.add_argument("--batch", type=int, default=16, help="examples a step, not of the vocabulary pass")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each side")
    parser.add_argument("--pass", dest="one_pass", choices=("plain", "fused"), help=argparse.SUPPRESS)
    parser.add_argument("--trained", choices=tuple(TRAINED), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.whole = not (options.head or options.prompt or options.lora)
    return options


def measured(options: argparse.Namespace) -> tuple[dict, list[str]]:
    "The tables that are asked for: figures by name, and Markdown lines."
    report, lines = {}, []
    if options.head or options.whole:
        report["head"] = {name: in_fresh_process("benchmarks.causal", "--pass", name) for name in ("plain", "fused")}
        lines += ["", *head_table(report["head"])]
    if options.prompt or options.whole:
        report["prompt"] = prompt_cost("cqa", options.rows, options.batch, options.steps)
        lines += ["", *prompt_table(report["prompt"])]
    if options.lora or options.whole:
        each = ("--batch", str(options.batch), "--steps", str(options.steps))
        report["lora"] = {name: in_fresh_process("benchmarks.causal", "--trained", name, *each) for name in TRAINED}
        lines += ["", *lora_table(report["lora"], options.batch, options.steps)]
    return report, lines


def main():
    options = parsed()
    if options.one_pass:
        print(json.dumps(head_cost(options.one_pass)))
        return
    if options.trained:
        print(json.dumps(training_cost(options.trained, options.batch, options.steps)))
        return
    report: dict = {"machine": describe(), "command": " ".join(["python -m benchmarks.causal", *sys.argv[1:]])}
    found, tables = measured(options)
    report |= found
    lines = [f"Measured with `{report['command']}` on: "
             + ", ".join(f"{key} {value}" for key, value in report["machine"].items()) + ".", *tables]
    if options.whole:
        write_json(RESULTS / "causal.json", report)
        write_text(RESULTS / "causal.md", "\n".join(lines) + "\n")
    print("\n".join(lines), to_json(report, None), sep="\n")


if __name__ == "__main__":
    main()
