"""Estimates of mutual information against known truth: the table of the tutorial on estimators.

    python -m benchmarks.mi                     every part, about half an hour on two cores
    python -m benchmarks.mi --parts fresh       one part: fresh, sample, coverage, width or signed
    python -m benchmarks.mi --again             measure anew what is in the table already

The table is nbs/tutorials/mi_estimators.json; it is written after every row, and rows that it holds are not measured
again. Parts:

fresh     fresh pairs at every step (the setting of Poole et al. 2019): batch 256, 1,500 steps, a separable critic that
          starts from nothing; read on eight times 1,000 new pairs
sample    5,000 pairs in all, cross-fitted in five folds of one critic; `start=none` is without the Gaussian start
coverage  how often the interval holds the truth, over 20 samples of 5,000 pairs
width     one sample of 5,000 pairs of 2 nats in 5 to 40 dimensions
signed    dependence without correlation
"""
import argparse
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cotmi.core import read_json, to_json, write_text
from cotmi.information.bounds import get_bound
from cotmi.information.critic_fit import fit_critic, read_bound, score
from cotmi.information.critics import get_critic
from cotmi.information.estimate import estimate_mi
from cotmi.information.known_truths import gaussian_club, gaussian_correlation, gaussian_pairs, signed_pairs
from cotmi.information.preparation import PreparedSide

TABLE = Path(__file__).parents[1] / "nbs" / "tutorials" / "mi_estimators.json"
NATS, WIDTHS = (0, 1, 2, 5, 8), (10, 20)
LOWER = ("infonce", "nwj", "dv", "js", "smile")
STEPS, BATCH, PAIRS, REPEATS = 1500, 256, 5000, 20
# bounds that are read from the same critic, by the bound that trains it
READ_FROM = {"infonce": ("infonce",), "nwj": ("nwj",), "dv": ("dv",), "js": ("js", "smile"),
             "barber-agakov": ("barber-agakov", "club")}


def batches(width: int, nats: float, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    "New Gaussian pairs without end."
    generator, rho = torch.Generator().manual_seed(seed), gaussian_correlation(nats, width)
    while True:
        z, noise = torch.randn(2, BATCH, width, generator=generator)
        yield z, rho * z + math.sqrt(1 - rho**2) * noise


def fresh(data: str, width: int, nats: float, trained: str) -> list[dict[str, Any]]:
    "Rows of the bounds that are read from one critic, trained on fresh pairs."
    started, cubed = time.perf_counter(), data == "cubed"
    known = gaussian_pairs(PAIRS, width, nats, seed=1, cubed=cubed) # the scales of cubes are learnt from 5,000 pairs
    sides = [PreparedSide(x, width, "normal-scores" if cubed else "standard", 0) for x in known]

    def prepared(z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return (sides[0](z**3), sides[1](v**3)) if cubed else (z, v)

    torch.manual_seed(0)
    critic = (get_bound(trained).critic or get_critic("separable")).make(width, width)
    fit_critic(critic, trained, (prepared(*b) for b in batches(width, nats, 2)), steps=STEPS, schedule="one-cycle",
               weight_decay=1e-3)
    matrices = [score(critic, *prepared(*gaussian_pairs(1000, width, nats, seed=100 + k))) for k in range(8)]
    rows = []
    for bound in READ_FROM[trained]:
        found = read_bound(bound, matrices)
        each = torch.tensor([read_bound(bound, [m], resamples=0).value for m in matrices])
        rows.append({"bound": bound, "value": found.value, "low": found.low, "high": found.high,
                     "spread": float(each.std()), "ceiling": get_bound(bound).ceiling(1000),
                     "seconds": time.perf_counter() - started})
    return rows


def sample(data: str, width: int, nats: float, bound: str, start: str = "gaussian",
           seed: int = 7) -> list[dict[str, Any]]:
    "The row of a bound on 5,000 pairs, cross-fitted."
    started = time.perf_counter()
    pairs = signed_pairs(PAIRS, width, nats, seed) if data == "signed" else \
        gaussian_pairs(PAIRS, width, nats, seed, cubed=data == "cubed")
    found = estimate_mi(*pairs, bound, start=start, seeds=1)
    kept = ("train", "gaussian", "upper_twin", "effective_false_pairs", "best_steps", "still_rising")
    return [{"bound": bound, "value": found.value, "low": found.low, "high": found.high, "ceiling": found.ceiling,
             "notes": found.notes, "seconds": time.perf_counter() - started,
             **{k: found.diagnostics[k] for k in kept if k in found.diagnostics}}]


def tasks() -> Iterator[tuple[dict[str, Any], Any, tuple]]:
    "What identifies a group of rows, the function that measures it, and its arguments; what matters most comes first."
    def fresh_ones(levels, kinds=("gaussian", "cubed")):
        for data, width, nats, trained in product(kinds, WIDTHS, levels, READ_FROM):
            # Barber-Agakov and CLUB are held to Gaussian pairs; cubes of independent numbers are independent numbers
            if data == "gaussian" or nats and get_bound(trained).critic is None:
                yield ({"part": "fresh", "data": data, "width": width, "nats": nats, "trained": trained}, fresh,
                       (data, width, nats, trained))

    def sample_ones(data, levels, bounds, start="gaussian", widths=WIDTHS, part="sample"):
        for width, nats, bound in product(widths, levels, bounds):
            yield ({"part": part, "data": data, "width": width, "nats": nats, "trained": bound, "start": start},
                   sample, (data, width, nats, bound, start))

    every = (*LOWER, "barber-agakov", "gaussian", "club")
    yield from fresh_ones((2, 5), ("gaussian",))
    yield from sample_ones("gaussian", (2, 5, 0), every)
    yield from sample_ones("signed", (0.5,), ("infonce", "js", "gaussian"), widths=(2,), part="signed")
    for start in ("gaussian", "none"):
        yield from sample_ones("gaussian", (2,), ("infonce",), start, (5, 10, 20, 40), "width")
    for width, nats in ((10, 2), (20, 5)):
        yield from sample_ones("gaussian", (nats,), (*LOWER, "barber-agakov", "club"), "none", (width,))
    yield from fresh_ones((5, 2), ("cubed",))
    for bound, repeat in product(("infonce", "smile", "nwj", "js", "dv", "gaussian"), range(REPEATS)):
        yield ({"part": "coverage", "data": "gaussian", "width": 10, "nats": 2, "trained": bound, "start": "gaussian",
                "repeat": repeat}, sample, ("gaussian", 10, 2, bound, "gaussian", 1000 + repeat))
    yield from fresh_ones((0, 1, 8))
    yield from sample_ones("gaussian", (1, 8), every)
    yield from sample_ones("cubed", (2, 5), LOWER)


def measure(key: dict[str, Any], function, arguments: tuple) -> list[dict[str, Any]]:
    "The rows of one group."
    torch.set_num_threads(1)
    truth = key["nats"]
    return [{**key, **row, "truth": truth, "error": row["value"] - truth} for row in function(*arguments)]


def rounded(value: Any) -> Any:
    "Four digits after the point are more than the figures deserve."
    return round(value, 4) if isinstance(value, float) else [rounded(v) for v in value] if isinstance(value, list) \
        else value


def save(rows: list[dict[str, Any]]):
    "Write the table, a row a line."
    club = {f"{w}/{n}": rounded(gaussian_club(n, w)) for w in WIDTHS for n in NATS}
    lines = ",\n".join(to_json(row, None) for row in rows)
    write_text(TABLE, f'{{"command": "python -m benchmarks.mi",\n"club_in_the_limit": {to_json(club, None)},\n'
                      f'"rows": [\n{lines}\n]}}\n')


def key_of(row: dict[str, Any]) -> tuple:
    "What tells the group of a row from the others."
    return tuple(row.get(name) for name in ("part", "data", "width", "nats", "trained", "start", "repeat"))


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    "The table's figures against what was asked of them, in sentences."
    def chosen(part: str, **wanted) -> list[dict]:
        return [r for r in rows if r["part"] == part and all(r.get(k) == v for k, v in wanted.items())]

    lines = []
    for nats, names, most in ((2, LOWER, 0.10), (5, ("smile", "js", "nwj", "infonce"), 0.15)):
        found = [r for r in chosen("fresh", nats=nats) if r["bound"] in names]
        if found:
            worst = max(found, key=lambda r: abs(r["error"]))
            lines.append(f"fresh pairs, {nats} nats: the worst of {len(found)} is {abs(worst['error']) / nats:.1%} off "
                         f"({worst['bound']}, {worst['data']}, d = {worst['width']}); asked: {most:.0%}")
    for width, nats, most in ((10, 2, 0.1), (20, 5, 0.5)):
        found = [r for r in chosen("sample", data="gaussian", width=width, nats=nats, start="gaussian")
                 if r["bound"] in LOWER]
        if found:
            best = min(found, key=lambda r: abs(r["error"]))
            lines.append(f"5,000 pairs, {nats} nats, d = {width}: the best lower bound is {abs(best['error']):.3f} off "
                         f"({best['bound']}); asked: {most}")
    lower = [r for r in chosen("sample") if r["bound"] in (*LOWER, "barber-agakov")]
    above = [f"{r['bound']} ({r['data']}, d = {r['width']}, {r['nats']} nats: {r['value']:.2f} "
             f"[{r['low']:.2f}, {r['high']:.2f}])" for r in lower if r["low"] > r["truth"]]
    lines.append(": ".join([f"5,000 pairs: {len(above)} of {len(lower)} lower bounds lie above the truth by more than "
                            "their interval", *(["; ".join(above)] if above else [])]))
    independent = [r["value"] for r in chosen("sample", nats=0)]
    if independent:
        lines.append(f"5,000 independent pairs: at most {max(independent):.3f} nats; asked: 0.05")
    upper = [r for r in rows if r["bound"] == "club"]
    if upper:
        lines.append(f"CLUB: {sum(r['value'] > r['truth'] - 0.02 for r in upper)} of {len(upper)} above the truth")
    for bound in (*LOWER, "barber-agakov", "gaussian"):
        found = chosen("coverage", trained=bound)
        if found:
            held = sum(r["low"] <= r["truth"] <= r["high"] for r in found)
            mean = sum(r["error"] for r in found) / len(found)
            lines.append(f"coverage of the 95 % interval, {bound}: {held} of {len(found)}, mean error {mean:+.3f}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=["fresh", "sample", "coverage", "width", "signed"])
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after about this long")
    parser.add_argument("--again", action="store_true", help="measure anew what is in the table already")
    options = parser.parse_args()
    rows = read_json(TABLE)["rows"] if TABLE.exists() else []
    if options.again:
        rows = [r for r in rows if r["part"] not in options.parts]
    done = {key_of(r) for r in rows}
    waiting = [t for t in tasks() if t[0]["part"] in options.parts and key_of(t[0]) not in done]
    order = {key_of(key): k for k, (key, *_) in enumerate(tasks())}
    started = time.perf_counter()
    with ProcessPoolExecutor(options.jobs) as pool:
        while waiting and time.perf_counter() - started < 60 * options.minutes:
            now, waiting = waiting[:2 * options.jobs], waiting[2 * options.jobs:]
            for future in as_completed([pool.submit(measure, *t) for t in now]):
                found = [{k: rounded(v) for k, v in row.items()} for row in future.result()]
                rows = sorted(rows + found, key=lambda r: order.get(key_of(r), len(order)))
                for row in found:
                    print(f"{len(waiting)} to go: {row['part']} {row['data']} d = {row['width']}, {row['nats']} nats: "
                          f"{row['bound']} {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", flush=True)
            save(rows)
    print("\n".join(verdicts(rows)))


if __name__ == "__main__":
    main()
