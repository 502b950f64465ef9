"""Where a training step spends its time: the operators of PyTorch's profiler in a few groups, a side a column.

    python -m benchmarks.step_profile --sides authors cotmi cotmi-bf16

Self time of each operator over a few steps after two to warm up. What is in no operator (Python, the autograd engine,
the collator) is what the steps took beyond their operators.
"""
import argparse
import sys
import time
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import describe
from benchmarks.sides import SIDES
from benchmarks.step import make_side
from benchmarks.students import SHAPES
from benchmarks.text import tokenised
from cotmi.core import write_text

RESULTS = Path(__file__).parent / "results"
GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::addmm_", "aten::linear", "mkldnn::_linear_pointwise"),
    "products of attention": ("aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product",
                              "aten::_flash_attention"),
    "softmax": ("aten::_softmax", "aten::_log_softmax", "aten::_softmax_backward_data",
                "aten::_log_softmax_backward_data", "aten::logsumexp"),
    "GELU": ("aten::gelu", "aten::gelu_backward", "aten::tanh", "aten::tanh_backward", "aten::pow"),
    "dropout": ("aten::random_", "aten::ge", "aten::bernoulli_", "aten::native_dropout",
                "aten::native_dropout_backward"),
    "sums and maxima": ("aten::sum", "aten::amax", "aten::max", "aten::mean", "aten::linalg_vector_norm",
                        "aten::addmv_", "aten::rsqrt_", "aten::eq"),
    "other elementwise": ("aten::mul", "aten::mul_", "aten::add", "aten::add_", "aten::addcmul", "aten::addcmul_",
                          "aten::div", "aten::div_", "aten::neg", "aten::sub", "aten::where", "aten::masked_fill_",
                          "aten::rsqrt", "aten::square_"),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_", "aten::clone"),
    "rows put in place": ("aten::index", "aten::_index_put_impl_", "aten::index_add_", "aten::index_select",
                          "aten::index_copy_", "aten::embedding_dense_backward", "aten::gather"),
    "optimiser and clipping": ("aten::_fused_adamw_", "aten::_foreach_norm", "aten::_foreach_mul_"),
}


def group_of(operator: str) -> str:
    "The group of an operator."
    return next((name for name, members in GROUPS.items() if operator in members), "other operators")


def measured(name: str, shape: str, batch: int, steps: int) -> dict[str, float]:
    "Seconds of a step by group."
    rows, _, _ = tokenised("cqa", 2_000)
    side = make_side(name, shape, rows, batch)
    order = side.batches()
    for _ in range(2):
        side.step(next(order))
    chosen = [next(order) for _ in range(steps)]
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        start = time.perf_counter()
        for each in chosen:
            side.step(each)
        whole = time.perf_counter() - start
    groups = dict.fromkeys([*GROUPS, "other operators"], 0.0)
    for event in trace.key_averages():
        if event.key.startswith(("aten::", "mkldnn::")):
            groups[group_of(event.key)] += event.self_cpu_time_total / 1e6 / steps
    groups["Python, autograd, collator"] = max(0.0, whole / steps - sum(groups.values()))
    return groups


def table(found: dict[str, dict[str, float]]) -> list[str]:
    "Milliseconds and shares by group, a side a column."
    names = list(found)
    lines = ["| | " + " | ".join(f"{SIDES[name].name}, ms" for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    wholes = [sum(found[name].values()) for name in names]
    for group in next(iter(found.values())):
        cells = [f"{1000 * found[name][group]:.0f} ({found[name][group] / whole:.0%})"
                 for name, whole in zip(names, wholes, strict=True)]
        lines.append(f"| {group} | " + " | ".join(cells) + " |")
    return [*lines, "| **a step** | " + " | ".join(f"{1000 * whole:.0f}" for whole in wholes) + " |"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="22.7M")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["authors", "authors-bf16", "cotmi", "cotmi-bf16"])
    options = parser.parse_args()
    found = {name: measured(name, options.shape, options.batch, options.steps) for name in options.sides}
    machine = ", ".join(f"{key} {value}" for key, value in describe().items())
    command = " ".join(["python -m benchmarks.step_profile", *sys.argv[1:]])
    text = "\n".join([f"Measured with `{command}` on: {machine}.", "",
                      f"One step of the {options.shape} student, {options.batch} examples of CQA:", "", *table(found)])
    write_text(RESULTS / "step-profile.md", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
