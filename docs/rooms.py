"""The rooms of the house from the ground up: a room imports only from those before it, a notebook from those with a
smaller number in its room."""

from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parents[1] / "nbs"

ROOMS = {
    "data": "What a run learns from: published, own and generated examples, and a report of every dropped row.",
    "students": "What learns: models behind one adapter for each family, their batches, answers and features Z and V.",
    "information": "How much two sets of features share: critics, bounds, estimates with intervals, correlations.",
    "training": "How a student learns: losses, objectives, every hyper-parameter of a run, the trainer.",
    "evaluation": "How good it became: answers, calibration, rationales, faithfulness, shared information, tests.",
    "llm": "What a large language model is asked for: rationales to learn from, and scores of those a student writes.",
    "runs": "What is kept: the run folder and its one writer, experiments, sweeps, comparisons.",
    "dashboards": "What is seen of it: figures, views, the dashboards of one run and of many, the playground.",
}
FIRST, LAST = "00_*", "10_*" # in nbs itself: core, which every room may use, and the command line, which uses all


def room_notebooks() -> dict[str, list[Path]]:
    "The library's notebooks in their order, by room; those in nbs itself stand under `core` and `command line`."
    rooms = {room: sorted((NOTEBOOKS / room).glob("[0-9]*.ipynb")) for room in ROOMS}
    first = sorted(NOTEBOOKS.glob(f"{FIRST}.ipynb"), key=lambda path: path.stem == "00_core") # it stands on the others
    return {"core": first, **rooms,
            "command line": sorted(NOTEBOOKS.glob(f"{LAST}.ipynb"))}
