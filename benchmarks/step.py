"""Speed and memory of a training step: ours and the authors' formula, on the same machine in the same run.

    python -m benchmarks.step            every shape, batch size and dataset, and how the vocabulary pass grows
    python -m benchmarks.step --quick    one shape in under three minutes; the last line is a JSON object

Tables go to benchmarks/results. What is measured and how: benchmarks/README.md.
"""
import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import describe, in_fresh_process, matmul_gflops, reset_peak, resident_mb
from benchmarks.sides import SIDES, Side
from benchmarks.students import SHAPES, WORDS, make_optimiser, make_student, useful_flops
from benchmarks.text import tokenised
from cotmi.core import read_json, to_json, write_json, write_text
from cotmi.training.fused_linear_loss import vocabulary_pass
from cotmi.training.losses import term_weights

RESULTS = Path(__file__).parent / "results"
RATES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COLUMNS = ("predict_input_ids", "label_ids", "explain_input_ids", "rationale_ids")


def make_side(name: str, shape: str, rows: list[dict], batch: int) -> Side:
    "A side with its own student."
    model = make_student(shape)
    lengths = np.array([[len(row[column]) for column in COLUMNS] for row in rows])
    return SIDES[name](model, make_optimiser(model), rows, lengths, batch)


def step_flops(side: Side, rows: list[int]) -> float:
    "Useful operations of a step on these rows."
    n = side.lengths[rows].astype(float)
    inputs, targets = n[:, ::2], n[:, 1::2]
    squares = ((inputs**2).sum(), (targets**2).sum(), (inputs * targets).sum())
    return useful_flops(side.model, inputs.sum(), squares, targets.sum())


def time_steps(names: list[str], shape: str, rows: list[dict], batch: int, steps: int, seconds: float,
               warm_up: int) -> dict:
    "Take steps of each side in turn; at least three, then until `steps` or `seconds` are reached."
    sides = [make_side(name, shape, rows, batch) for name in names]
    orders = [side.batches() for side in sides]
    times, rates, used = [[] for _ in sides], [[] for _ in sides], [[] for _ in sides]
    started = time.perf_counter()
    for done in range(-warm_up, steps):
        for side, order, taken, rate, busy in zip(sides, orders, times, rates, used, strict=True):
            chosen = next(order)
            start, worked = time.perf_counter(), time.process_time()
            side.step(chosen)
            spent = time.perf_counter() - start
            if done >= 0:
                taken.append(spent)
                busy.append(time.process_time() - worked)
                rate.append(step_flops(side, chosen) / spent / 1e9)
        if done >= 2 and time.perf_counter() - started > seconds:
            break
    def summary(taken, rate, busy):
        speeds = sorted(batch / each for each in taken)
        return {"examples_per_second": statistics.median(speeds), "low": speeds[0], "high": speeds[-1],
                "steps": len(speeds), "useful_gflops": statistics.median(rate),
                "processor_seconds": statistics.median(busy)}
    return {name: summary(*each) for name, *each in zip(names, times, rates, used, strict=True)}


def peak_of(name: str, shape: str, rows: list[dict], batch: int) -> float:
    "Peak memory in MB above model and optimiser state, over the largest batch of an epoch and two others."
    side = make_side(name, shape, rows, batch)
    for parameter in side.model.parameters(): # make the optimiser's state
        parameter.grad = torch.zeros_like(parameter)
    side.optimiser.step()
    side.optimiser.zero_grad(set_to_none=True)
    side.loss(side.collate(rows[:2])).backward() # what libraries allocate once is no part of a step
    side.optimiser.zero_grad(set_to_none=True)
    order = side.batches()
    epoch = [next(order) for _ in range(len(rows) // batch)]
    padded = [side.lengths[chosen].max(0).sum() for chosen in epoch]
    chosen = [epoch[int(np.argmax(padded))], *epoch[:2]]
    reset_peak()
    before = resident_mb()
    for each in chosen:
        side.step(each)
    return resident_mb(peak=True) - before


def pass_cost(implementation: str, words: int, length: int, batch: int, width: int = 256) -> dict:
    "Seconds and peak MB of one vocabulary pass with its gradients, above its inputs and their gradients."
    torch.manual_seed(0)
    states = [torch.randn(batch, n, width, requires_grad=True) for n in (3, length)]
    labels = [torch.randint(0, words, (batch, n)) for n in (3, length)]
    weight = torch.randn(words, width).mul_(width**-0.5).requires_grad_()
    def once(rows):
        terms = vocabulary_pass(implementation, states[0][:rows], labels[0][:rows], states[1][:rows], labels[1][:rows],
                                weight, pool="target", weights=term_weights(0.5, 0.1))
        terms.total.backward()
        for tensor in (*states, weight):
            tensor.grad = None
    once(1)
    reset_peak()
    before, start = resident_mb(), time.perf_counter()
    once(batch)
    seconds = time.perf_counter() - start
    gradients = (weight.numel() + sum(s.numel() for s in states)) * 4 / 2**20
    return {"seconds": seconds, "mb": resident_mb(peak=True) - before - gradients}


def ratios(sides: dict[str, dict], rates: dict[str, float]) -> dict:
    "Our best side against both of the authors', as far as they were measured; shares of the rate of its own precision."
    ours = [sides[name] for name in ("cotmi", "cotmi-bf16") if name in sides]
    best, found = max(ours, key=lambda side: side["examples_per_second"], default=None), {}
    if best and (base := sides.get("authors")):
        found = {"throughput_ratio": best["examples_per_second"] / base["examples_per_second"],
                 "memory_ratio": best["peak_mb"] / base["peak_mb"]}
    if best and (narrow := sides.get("authors-bf16")):
        found["throughput_ratio_bf16"] = best["examples_per_second"] / narrow["examples_per_second"]
    if "cotmi" in sides and (base := sides.get("authors")):
        found["throughput_ratio_float32"] = sides["cotmi"]["examples_per_second"] / base["examples_per_second"]
    shares = {name: side["useful_gflops"] / rates[rate_of(name)] for name, side in sides.items()}
    return found | {"useful_share_of_matmul": shares}


def rate_of(side: str) -> str:
    "The rate that a side is held against: that of its own precision."
    return next(name for name, dtype in RATES.items() if dtype == SIDES[side].dtype)


def measure(shape: str, dataset: str, batch: int, names: list[str], rows: int | None, steps: int, seconds: float,
            warm_up: int = 1) -> dict:
    "Speed of all sides in turn, then the memory of each in a fresh process."
    plain, lengths, source = tokenised(dataset, rows)
    random = np.random.default_rng(0).permutation(len(lengths))[:len(lengths) // batch * batch].reshape(-1, batch)
    real = [float(lengths[random][..., i].sum() / (lengths[random][..., i].max(1).sum() * batch)) for i in range(4)]
    found = {"shape": shape, "data": source, "batch": batch, "examples": len(plain),
             "mean_tokens": dict(zip(COLUMNS, lengths.mean(0).round(1).tolist(), strict=True)),
             "real_in_random_batches": dict(zip(COLUMNS, real, strict=True)),
             "matmul_gflops": {name: matmul_gflops(SHAPES[shape]["d_model"], WORDS, dtype=dtype)
                               for name, dtype in RATES.items()}}
    with tempfile.TemporaryDirectory() as folder: # in other processes, so that all memory is free again for the next
        write_text(file := Path(folder) / "rows.json", to_json(plain, None))
        found["sides"] = in_fresh_process("benchmarks.step", "--speed-of", str(file), shape,
                                          *map(str, (batch, steps, seconds, warm_up)), *names)
        for name in names:
            found["sides"][name] |= in_fresh_process("benchmarks.step", "--peak-of", name, shape, str(batch), str(file))
    return found | ratios(found["sides"], found["matmul_gflops"])


def step_table(found: list[dict]) -> Iterator[str]:
    "Markdown lines, one for each side of each setting."
    yield ("| student | data | batch | side | examples/s (median, low–high) | ratio "
           "| processor s a step | peak MB above model and optimiser | ratio | useful GFLOP/s "
           "| share of the rate of its precision |")
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for each in found:
        base = next(iter(each["sides"].values()))
        for name, side in each["sides"].items():
            yield (f"| {each['shape']} | {each['data']} | {each['batch']} | {SIDES[name].name} "
                   f"| {side['examples_per_second']:.2f} ({side['low']:.2f}–{side['high']:.2f}) "
                   f"| {side['examples_per_second'] / base['examples_per_second']:.2f} "
                   f"| {side['processor_seconds']:.2f} | {side['peak_mb']:.0f} "
                   f"| {side['peak_mb'] / base['peak_mb']:.2f} | {side['useful_gflops']:.1f} "
                   f"| {each['useful_share_of_matmul'][name]:.0%} |")


GROWTH = [(words, 64, 16) for words in (8_000, 32_128, 128_000)] + [
    (32_128, length, 16) for length in (32, 128, 256)] + [(32_128, 64, batch) for batch in (4, 64)]


def growth() -> list[dict]:
    "The vocabulary pass alone as vocabulary, rationale length and batch grow."
    found = []
    for words, length, batch in GROWTH:
        row = {"words": words, "length": length, "batch": batch}
        for name in ("plain", "fused"):
            row[name] = in_fresh_process("benchmarks.step", "--pass", name, str(words), str(length), str(batch))
        found.append(row)
    return found


def growth_table(found: list[dict]) -> Iterator[str]:
    "Markdown lines, one for each size."
    yield "| words | rationale tokens | batch | plain s | fused s | plain MB | fused MB |"
    yield "|---|---|---|---|---|---|---|"
    for row in found:
        yield (f"| {row['words']} | {row['length']} | {row['batch']} | {row['plain']['seconds']:.2f} "
               f"| {row['fused']['seconds']:.2f} | {row['plain']['mb']:.0f} | {row['fused']['mb']:.0f} |")


def save(name: str, report: dict) -> str:
    "Write the report as JSON and as a table; the table."
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    lines = [f"Measured with `{report['command']}` on: {machine}.", "", *step_table(report["steps"])]
    if report.get("growth"):
        lines += ["", "The vocabulary pass alone: d 256, labels of 3 tokens; memory above inputs and gradients:", "",
                  *growth_table(report["growth"])]
    write_json(RESULTS / f"{name}.json", report)
    write_text(RESULTS / f"{name}.md", "\n".join(lines) + "\n")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="22.7M, batch 32, CQA or generated text")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 32, 64])
    parser.add_argument("--data", nargs="+", default=["cqa", "svamp"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["authors", "authors-bf16", "cotmi", "cotmi-bf16"])
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each side")
    parser.add_argument("--warm-up", type=int, default=1, help="steps of each side that are not timed")
    parser.add_argument("--seconds", type=float, default=60, help="stop timing a setting after this long")
    parser.add_argument("--no-growth", action="store_true", help="leave out the growth of the vocabulary pass")
    parser.add_argument("--name", default=None, help="name of the result files")
    parser.add_argument("--speed-of", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--peak-of", nargs=4, metavar=("SIDE", "SHAPE", "BATCH", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--pass", dest="one_pass", nargs=4, metavar=("NAME", "WORDS", "LENGTH", "BATCH"),
                        help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.speed_of:
        file, shape, batch, steps, seconds, warm_up, *names = options.speed_of
        print(json.dumps(time_steps(names, shape, read_json(file), int(batch), int(steps), float(seconds),
                                    int(warm_up))))
        return
    if options.peak_of:
        name, shape, batch, file = options.peak_of
        print(json.dumps({"peak_mb": peak_of(name, shape, read_json(file), int(batch))}))
        return
    if options.one_pass:
        name, *sizes = options.one_pass
        print(json.dumps(pass_cost(name, *map(int, sizes))))
        return
    command = " ".join(["python -m benchmarks.step", *sys.argv[1:]])
    report = {"machine": describe(), "command": command, "steps": []}
    if options.quick:
        report["steps"] = [measure("22.7M", "cqa", 32, options.sides, 2_000, options.steps, 60)]
        print(save(options.name or "step-quick", report))
        first = report["steps"][0]
        print(json.dumps({name: round(value, 4) for name, value in first.items() if "ratio" in name}
                         | {name: first[name] for name in ("useful_share_of_matmul", "matmul_gflops", "data")}))
        return
    seen = set()
    for shape, dataset, batch in product(options.shapes, options.data, options.batches):
        found = measure(shape, dataset, batch, options.sides, None, options.steps, options.seconds,
                        options.warm_up)
        if (key := (shape, found["data"], batch)) in seen: # generated text stands in for every missing dataset
            continue
        seen.add(key)
        report["steps"].append(found)
        print(*step_table([found]), sep="\n", flush=True)
        save(options.name or "step", report)
    if not options.no_growth:
        report["growth"] = growth()
    print(save(options.name or "step", report))


if __name__ == "__main__":
    main()
