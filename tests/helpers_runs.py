"""Synthetic run folders for the tests of the run readers, the figures and the dashboards.

Every file follows the layout of a real run folder. The texts are made here, and so are the numbers: nothing in these
folders was trained, and no figure drawn from them says anything about a method.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

HOSTILE = ('<img src=x onerror="window.cotmiHacked=1"><script>window.cotmiHacked=1</script><b>bold</b> & "quoted" '
           '$x$ {{y}}')
NAMES = ("Ada", "Bram", "Chloe", "Dario", "Esme", "Farid", "Greta", "Hugo")
THINGS = ("pears", "shells", "stamps", "buttons", "coins", "pebbles")
PLACES = ("kitchen", "garden", "harbour", "library", "station")
VOCABULARY = ("▁", ".", "+", "-", "=", *map(str, range(10)), "▁finds", "▁gives", "▁more", "▁has", "▁left", "▁now",
              "▁how", "▁many", "▁pears", "▁shells", "▁stamps", "▁coins", "<pad>", "</s>")


def _number_examples(world: np.random.Generator, rng: np.random.Generator, size: int, accuracy: float) -> pd.DataFrame:
    rows = []
    for _ in range(size):
        name, thing = world.choice(NAMES), world.choice(THINGS)
        start, more = int(world.integers(1, 10)), int(world.integers(1, 10))
        away = int(world.integers(0, start + more + 1))
        text = f"{name} has {start} {thing}. {name} finds {more} more. {name} gives away {away}. How many are left?"
        steps = f"{start} + {more} = {start + more}. {start + more} - {away} = {start + more - away}."
        gold = str(start + more - away)
        teacher = gold if world.random() < 0.95 else str(start + more)
        right = rng.random() < accuracy
        shift = 0 if right else int(rng.choice((-2, -1, 1, 2)))
        said = start + more - away + shift
        half = start + more + shift
        own = steps if right else f"{start} + {more} = {half}. {half} - {away} = {said}."
        faithful = bool(rng.random() < 0.9)
        rows.append(dict(input=text, gold_label=gold, teacher_label=teacher, choices=[],
                         predicted_label=str(said if faithful else said + 1), rationale=steps, generated_rationale=own,
                         faithful=faithful))
    return pd.DataFrame(rows)


def _choice_examples(world: np.random.Generator, rng: np.random.Generator, size: int, accuracy: float) -> pd.DataFrame:
    rows = []
    for _ in range(size):
        thing = world.choice(THINGS)
        choices = [str(p) for p in world.permutation(PLACES)]
        gold, wrong = choices[0], choices[1 + int(world.integers(4))]
        choices = [str(c) for c in world.permutation(choices)]
        right = rng.random() < accuracy
        rows.append(dict(
            input=f"Someone looks for {thing} early in the morning. Where are they most likely to begin?",
            gold_label=gold, teacher_label=gold if world.random() < 0.8 else wrong, choices=choices,
            predicted_label=gold if right else wrong,
            rationale=f"The answer should be a place where {thing} are kept. "
                      f"Of the choices, {thing} are kept in the {gold}.",
            generated_rationale=f"The answer should be a place where {thing} are found. "
                                f"Of the choices, {thing} are found in the {gold if right else wrong}.",
            faithful=bool(rng.random() < 0.85)))
    return pd.DataFrame(rows)


def _predictions(rng: np.random.Generator, size: int, accuracy: float, kind: str, hostile: bool) -> pd.DataFrame:
    world = np.random.default_rng(size) # the same examples for every run of this size; only the answers differ
    frame = (_choice_examples if kind == "choice" else _number_examples)(world, rng, size, accuracy)
    frame.insert(0, "id", [f"test-{i:05d}" for i in range(size)])
    frame["correct"] = frame.predicted_label == frame.gold_label
    frame["teacher_correct"] = frame.teacher_label == frame.gold_label
    sure = np.where(frame.correct, rng.beta(7, 1.6, size), rng.beta(3, 2.4, size))
    frame["confidence"] = np.clip(sure, 0.22, 0.999) if kind == "choice" else np.clip(sure, 0.05, 0.999)
    probabilities = []
    for row in frame.itertuples():
        rest = rng.dirichlet(np.ones(max(len(row.choices) - 1, 1))) * (1 - row.confidence)
        others = iter(rest)
        probabilities.append([row.confidence if c == row.predicted_label else float(next(others)) for c in row.choices])
    frame["label_probabilities"] = probabilities
    overlap = np.clip(np.where(frame.correct, rng.beta(8, 2, size), rng.beta(4, 4, size)), 0, 1)
    frame["rationale_rouge_l"], frame["rationale_bleu"] = overlap, np.clip(overlap * 0.85, 0, 1)
    frame["rationale_chrf"], frame["rationale_cosine"] = np.clip(overlap * 0.95, 0, 1), 0.4 + 0.6 * overlap
    frame["faithful"] = pd.array(frame["faithful"], dtype="boolean") # some cannot be decided
    frame.loc[frame.index % 17 == 3, "faithful"] = pd.NA
    if hostile:
        for column in ("input", "rationale", "generated_rationale", "predicted_label", "teacher_label"):
            frame.loc[0, column] = f"{HOSTILE} {column}"
        frame.loc[0, ["correct", "teacher_correct"]] = False
    return frame


def _features(rng: np.random.Generator, frame: pd.DataFrame, width: int, kind: str) -> dict[str, np.ndarray]:
    labels = pd.factorize(frame.gold_label)[0]
    centres = rng.normal(size=(labels.max() + 1, 6))
    shared = centres[labels] * 0.9 + rng.normal(size=(len(frame), 6)) * 0.55
    mixing_z, mixing_v = rng.normal(size=(6, width)), rng.normal(size=(6, width))
    mixing_v[:, : width // 2] = mixing_z[:, : width // 2] * 0.9 + mixing_v[:, : width // 2] * 0.3
    noise = np.where(frame.correct, 0.6, 1.4)[:, None]
    z = shared @ mixing_z + noise * rng.normal(size=(len(frame), width))
    v = shared @ mixing_v + noise * rng.normal(size=(len(frame), width))
    if kind == "vocab": # probabilities, most of them small
        z, v = 1 / (1 + np.exp(3 - z)), 1 / (1 + np.exp(3 - v))
    return {"z": z.astype(np.float32), "v": v.astype(np.float32)}


def _history(rng: np.random.Generator, steps: int, every: int, accuracy: float, method: str, objective: str):
    best, rows = (-1.0, 0), []
    for step in range(every, steps + 1, every):
        t = step / steps
        noise = lambda scale: float(rng.normal() * scale) # noqa: E731
        predict = 2.4 * np.exp(-4 * t) + 0.25 + noise(0.05)
        row = {"step": step, "epoch": step / 63, "loss/predict": predict, "lr": 3e-3 * (1 - t),
               "grad_norm": 0.6 + abs(noise(0.2)), "examples_per_second": 900 + noise(40), "seconds": 0.07 * step}
        if method != "finetune":
            row["loss/explain"] = 1.9 * np.exp(-5 * t) + 0.12 + noise(0.03)
        if method == "mi":
            row["loss/mi"] = 7.5 - 1.2 * (1 - np.exp(-3 * t)) + noise(0.03)
            if objective.startswith("paper"):
                inner = 0.05 + 0.33 * (1 - np.exp(-3 * t)) + noise(0.01)
                row |= {"mi/overlap": 0.5 + inner, "mi/overlap_without_end": inner, "mi/term_floor": 6.1,
                        "mi/term_ceiling": 7.8, "mi/gradient_share": 0.04 + abs(noise(0.01))}
            else:
                row[f"mi/{objective}"] = 3.3 * (1 - np.exp(-4 * t)) + noise(0.08)
        row["loss"] = sum(w * row.get(k, 0) for k, w in (("loss/predict", .5), ("loss/explain", .5), ("loss/mi", .1)))
        rows.append(row)
        if step % (every * 10) == 0:
            valid = float(np.clip(accuracy * (1 - np.exp(-4.5 * t)) + noise(0.012), 0, 1))
            best = max(best, (valid, step))
            shared = (1.1 if method == "mi" else 0.8) * (1 - np.exp(-4 * t)) + noise(0.03)
            rows.append({"step": step, "epoch": step / 63, "valid/accuracy": valid, "valid/loss": predict + 0.1,
                         "valid/mi": shared, "valid/mi_low": shared - 0.14, "valid/mi_high": shared + 0.14,
                         "valid/mi_null": 0.09 + abs(noise(0.01))})
    return rows, best


def _split_report(rows: int, dropped: dict[str, int], kept: dict[str, int], text: str, name: str, kind: str) -> dict:
    samples = {problem: [{"id": f"{name}-{i:05d}", "text": text} for i in range(min(count, 5))]
               for problem, count in (dropped | kept).items()}
    return {"read": rows + sum(dropped.values()), "used": rows, "dropped": dropped, "kept": kept, "left_out": 0,
            "teacher_correct": int(rows * 0.95), "teacher_label_empty": dropped.get("empty label", 0),
            "majority_label": "garden" if kind == "choice" else "5", "majority_share": 0.081, "samples": samples}


def _report(size: int, hostile: bool, kind: str) -> dict:
    text = HOSTILE if hostile else "First there are seven, then four are given away, and so on without an end"
    dropped = {"no marker": 11, "empty rationale": 2, "empty label": 4, "not an equation": 17}
    train = _split_report(size * 8, dropped, {"truncated": 3}, text, "train", kind)
    rest = {name: _split_report(size, {}, {}, text, name, kind) for name in ("valid", "test")}
    return {"name": "demo", "title": "Made-up stories", "label_kind": kind, "label_source": "gold",
            "splits": {"train": train, **rest}, "files": {"train": train, "test": rest["test"]},
            "notes": ["Made by the tests: no row was ever trained on."]}


def make_run(
    root: str | Path, # The outputs folder
    *,
    dataset: str = "demo",
    method: str = "mi",
    objective: str = "paper-masked",
    seed: int = 0,
    examples: int = 500, # Test examples
    accuracy: float = 0.82, # About what the student gets right
    kind: str = "number", # `number`: free labels; `choice`: five choices listed per row
    features: str = "vocab",
    width: int = 48, # Dimensions of Z and V
    sample: int = 1500, # Most examples with features
    steps: int = 1000,
    hostile: bool = False, # Put HTML, script and template characters into the texts
    status: str = "complete",
) -> Path: # The run folder
    "Write a whole run folder by the contract."
    rng = np.random.default_rng([seed, examples, len(method), len(objective)])
    config = {"dataset": dataset, "method": method, "objective": objective if method == "mi" else None,
              "features": features, "student": "builtin:tiny", "seed": seed, "alpha": 0.5, "beta": 0.1, "gamma": 0.0,
              "batch_size": 64, "max_steps": steps, "learning_rate": 3e-3, "label_source": "gold"}
    key = hashlib.sha1(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]
    folder = Path(root) / dataset / f"{method}-seed{seed}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    write = lambda name, value: (folder / name).write_text(json.dumps(value, indent=1, ensure_ascii=False)) # noqa: E731
    write("config.json", {"values": config, "sources": {k: "default" for k in config} | {"seed": "-p seed"}})
    write("environment.json", {"python": "3.11.7", "torch": "2.13.0", "platform": "Linux", "device": "cpu",
                               "command": f"cotmi run {dataset} -p method {method} -p seed {seed}"})
    write("data_report.json", _report(examples, hostile, kind))

    frame = _predictions(rng, examples, accuracy, kind, hostile)
    frame.to_parquet(folder / "predictions.parquet", index=False)
    history, (best_valid, best_step) = _history(rng, steps, 10, accuracy, method, objective)
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))

    kept = frame.iloc[np.sort(rng.permutation(len(frame))[: min(sample, len(frame))])]
    names = [*VOCABULARY, *(f"token {i}" for i in range(width))] if features == "vocab" else map(str, range(width))
    names = list(names)[:width]
    note = {"ids": json.dumps(kept.id.tolist()), "dimension_names": json.dumps(names), "features": features}
    save_file(_features(rng, kept, width, features), folder / "features.safetensors", metadata=note)

    ceiling = float(np.log(64))
    estimate = lambda bound, value, half, top, **d: { # noqa: E731
        "value": value, "low": value - half, "high": value + half, "ceiling": top, "bound": bound,
        "critic": "separable", "pairs": len(kept), "diagnostics": d}
    measured = {"train": 3.02, "gaussian": 2.31, "upper_twin": 5.1, "z_used": 25, "v_used": 25}
    rising = {"notes": ["3 of 10 critics were still improving after 1000 steps; allow more steps."]}
    write("mi.json", {"estimates": [
        estimate("infonce", 2.71, 0.12, ceiling, **measured, notes=["PCA takes z from 48 to 25 dimensions (83% of "
                                                                    "the variance)."]),
        estimate("smile", 3.05, 0.22, None, **measured, **rising),
        estimate("gaussian", 2.31, 0.09, None, **measured, notes=[])],
        "correlation": {"measures": {
            name: {"value": value, "low": value - half, "high": value + half, "p_value": p, "by_chance": chance}
            for name, value, half, p, chance in (
                ("pearson", 0.41, 0.03, 0.005, 0.0), ("cosine", 0.62, 0.02, 0.005, 0.21),
                ("cka", 0.55, 0.04, 0.005, 0.08), ("cca", 0.78, 0.03, 0.005, 0.33),
                ("dcor", 0.66, 0.03, 0.005, 0.12))}, "refused": {}, "notes": []}, "notes": []})

    half = 1.96 * np.sqrt(frame.correct.mean() * (1 - frame.correct.mean()) / len(frame))
    metrics = {"status": status, "valid/accuracy": best_valid, "train/best_step": best_step, "train/steps": steps,
               "train/seconds": 0.07 * steps, "train/examples_per_second": 902.0}
    if status == "complete":
        value = float(frame.correct.mean())
        metrics |= {"test/accuracy": value, "test/accuracy_low": value - half, "test/accuracy_high": value + half,
                    "test/majority_accuracy": 0.081, "test/teacher_accuracy": float(frame.teacher_correct.mean()),
                    "test/ece": 0.061, "test/ece_low": 0.048, "test/ece_high": 0.079,
                    "test/mi": 2.71, "test/mi_low": 2.59, "test/mi_high": 2.83, "test/mi_ceiling": ceiling,
                    "test/faithful": float(frame.faithful.mean()), "test/rationale_rouge_l": 0.71,
                    "test/correlation_pearson": 0.41}
    if status == "failed":
        metrics["error"] = f"DataError: {HOSTILE}" if hostile else "RuntimeError: the loss is not finite at step 420"
    write("metrics.json", metrics)
    return folder


def half_written_run(root: str | Path, seed: int = 7) -> Path:
    "A run that is still training: configuration, report and the first lines of the history, the last one cut off."
    folder = make_run(root, seed=seed, status="running")
    for name in ("predictions.parquet", "features.safetensors", "mi.json"):
        (folder / name).unlink()
    lines = (folder / "history.jsonl").read_text().splitlines(keepends=True)[:40]
    (folder / "history.jsonl").write_text("".join(lines) + '{"step": 410, "loss')
    return folder


def failed_run(root: str | Path, seed: int = 8) -> Path:
    "A run that ended in an error before its evaluation."
    folder = make_run(root, seed=seed, status="failed", hostile=True)
    for name in ("predictions.parquet", "features.safetensors", "mi.json"):
        (folder / name).unlink()
    return folder


def broken_run(root: str | Path, seed: int = 9) -> Path:
    "A run whose files are all there and all damaged."
    folder = make_run(root, seed=seed)
    for name in ("predictions.parquet", "features.safetensors", "mi.json", "metrics.json", "data_report.json",
                 "history.jsonl", "environment.json"):
        (folder / name).write_bytes((folder / name).read_bytes()[:37] + b"\xff\xfe")
    return folder


def foreign_run(root: str | Path) -> Path:
    "A folder of another program: JSON that is none of ours and a table with other columns."
    folder = Path(root) / "elsewhere" / "foreign"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model": "something", "lr": 1}))
    (folder / "metrics.json").write_text(json.dumps(["not", "a", "mapping"]))
    pd.DataFrame({"text": ["a", "b"], "score": [1, 2]}).to_parquet(folder / "predictions.parquet")
    return folder


def grow(folder: str | Path, steps: int = 200) -> None:
    "Append rows to a run's history, as a training that goes on does."
    path = Path(folder) / "history.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    last = max(row["step"] for row in lines)
    rows = [dict(step=step, **{"epoch": step / 63, "loss": 0.3, "loss/predict": 0.3, "loss/explain": 0.2, "lr": 1e-4,
                               "examples_per_second": 900, "seconds": 0.07 * step})
            for step in range(last + 10, last + steps + 1, 10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*lines, *rows]))


def make_grid(root: str | Path, seeds: int = 3, examples: int = 400) -> list[Path]:
    "Runs of three methods over a few seeds on the same test examples, for comparisons."
    runs = [(method, seed, value + 0.012 * (seed - 1)) for seed in range(seeds)
            for method, value in (("finetune", 0.74), ("dss", 0.80), ("mi", 0.83))]
    return [make_run(root, method=m, seed=s, accuracy=a, examples=examples) for m, s, a in runs]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--examples", type=int, default=500)
    given = parser.parse_args()
    print(make_run(given.folder, examples=given.examples, hostile=True))
