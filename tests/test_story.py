"""The story of a run: its figures are the numbers of its history, beside the right run without the term."""

import json

import helpers_browser as browser
import helpers_runs as made
import numpy as np
import pandas as pd
import pytest

from cotmi import RunDashboard
from cotmi.dashboards import curves, figures, mi_story
from cotmi.dashboards.intervals import forest
from cotmi.dashboards.mi_story_view import run_without_term
from cotmi.dashboards.run_dashboard import RUN_VIEWS
from cotmi.dashboards.training_view import weights_of
from cotmi.runs.run_folder import Run
from cotmi.students.methods import METHODS


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A run of each method on the same data, by method."
    root = tmp_path_factory.mktemp("story")
    return {name: Run(made.make_run(root, method=name, examples=120)) for name in METHODS}


def test_the_story_draws_the_history(runs):
    dash = RunDashboard(runs["mi"], follow=False)
    dash.pages.turn_to("MI story")
    view, history, ghost = dash.views["MI story"], runs["mi"].history, runs["dss"].history
    drawn = {trace.name: trace for trace in view.story.figure.data if trace.name}
    for name, table, column in (("held-out Î on valid", history, "valid/mi"), ("dss, seed 0", ghost, "valid/mi"),
                                ("95 % of shuffles stay below", history, "valid/mi_null"),
                                ("accuracy on valid", history, "valid/accuracy")):
        assert np.allclose(drawn[name].y, table[column].dropna()), name
    assert {t.name for t in view.term.figure.data} >= {"all words", "the term", "the least it can be"}
    last = history["mi/overlap"].dropna().iloc[-1]
    assert f"{last:.0%} of what the label pass says" in view.words.value
    dash.close()


@pytest.mark.parametrize("method", METHODS)
def test_no_method_has_an_empty_story(runs, method):
    dash = RunDashboard(runs[method], follow=False)
    dash.pages.turn_to("MI story")
    assert dash.views["MI story"].story.figure.data and "On valid pairs" in dash.views["MI story"].words.value
    dash.close()


def test_the_ghost_differs_in_the_term_alone(runs, tmp_path):
    assert run_without_term(runs["mi"]).path == runs["dss"].path
    for changed in ({"steps": 500}, {"features": "decoder"}):
        root = tmp_path / next(iter(changed))
        flagship = made.make_run(root, method="mi", examples=60, **changed)
        made.make_run(root, method="dss", examples=60)
        assert run_without_term(Run(flagship)) is None


@pytest.mark.parametrize("method", METHODS)
def test_contributions_add_up_to_the_total(runs, method):
    history, weights = runs[method].history, weights_of(runs[method])
    drawn = {t.name: np.asarray(t.y) for t in curves.loss_curves(history, weights=weights).data}
    terms = [values for name, values in drawn.items() if name != "total"]
    if METHODS[method].explains: # the made-up totals of the others weigh their one term by a half
        assert np.allclose(sum(terms), drawn["total"])
    assert len(terms) == sum(f"loss/{name}" in history for name in weights)


def test_a_far_ceiling_leaves_the_curves_their_room():
    history = pd.DataFrame({"step": [1, 2], "mi/infonce": [0.4, 0.5]})
    near, far = (curves.mi_curve(history, ceilings={"infonce": top}) for top in (0.6, 6.0))
    assert near.layout.shapes and not far.layout.shapes and "6.00 nats, far above" in far.layout.annotations[0].text


def test_the_forest_says_value_direction_null_and_twins(runs):
    dash = RunDashboard(runs["mi"], follow=False)
    dash.pages.turn_to("Mutual information")
    figure = dash.views["Mutual information"].forest.figure
    points, named = figure.data[0], {t.name for t in figure.data}
    assert list(points.marker.symbol) == ["triangle-right", "triangle-right", "circle"]
    assert "text" in points.mode and figure.layout.xaxis.rangemode == "tozero"
    assert {"Gaussian closed form", "CLUB, an upper bound", "lower bound", "neither"} <= named
    assert 4.16 not in [round(x, 2) for t in figure.data for x in t.x if x is not None] # the ceiling is told in words
    assert "the bound cannot exceed 4.159 nats" in dash.views["Mutual information"].words.value
    dash.close()


def test_hostile_names_stay_text():
    ghost = made.HOSTILE
    history = pd.DataFrame({"step": [1, 2], "valid/mi": [0.4, 0.5], "valid/accuracy": [0.1, 0.2]})
    text = json.dumps(json.loads(mi_story.story_curves(history, ghost=history, ghost_name=ghost).to_json()))
    rows = pd.DataFrame({"label": ["a"], "value": [1.0], "low": [0.5], "high": [2.0], "twins": [{ghost: 1.0}]})
    assert "<img" not in text and "<img" not in forest(rows, "T", "u").to_json()


def test_one_selection_reaches_every_view(runs):
    dash = RunDashboard(runs["mi"], follow=False)
    for title in RUN_VIEWS:
        dash.pages.turn_to(title)
    ids = dash.examples["id"].iloc[:50].tolist()
    dash.select(ids, "a test")
    assert dash.views["Rationales"].table._view["total"] == 50
    assert "50 examples selected by a test" in dash.views["Calibration"].part.value
    faint = [o for t in dash.views["Z and V"].map.figure.data if t.mode == "markers" for o in t.marker.opacity]
    assert sum(o > 0.5 for o in faint) == 2 * 50 # Z and V of each
    assert "50 of 120" in dash.bar.words.value
    dash.bar.thread.join(120)
    assert dash.bar.words.value.count("of 50 pairs") == 2 # equally many of both
    results = {p.name: p.read_bytes() for p in dash.run.path.iterdir() if p.is_file()}
    dash.bar.name.value = "mine"
    dash.bar.keep.click()
    assert results == {p.name: p.read_bytes() for p in dash.run.path.iterdir() if p.is_file()}
    again = RunDashboard(runs["mi"].path, follow=False)
    again.bar.slices.value = "mine"
    assert again.selection.ids == set(ids)
    for each in (dash, again):
        each.close()


@pytest.mark.slow
@pytest.mark.parametrize("inches", figures.PAPER_INCHES)
def test_a_paper_gets_its_width_and_its_fonts(runs, inches):
    pytest.importorskip("kaleido")
    if reason := browser.missing():
        pytest.skip(reason)
    figure = curves.loss_curves(runs["mi"].history)
    pdf, svg = figures.paper_image(figure, inches, "pdf"), figures.paper_image(figure, inches, "svg").decode()
    box = pdf.split(b"MediaBox", 1)[1].split(b"]", 1)[0].strip(b" [").split()
    assert abs(float(box[2]) - inches * 72) < 1.5 and b"FontFile" in pdf
    assert "data:font/ttf;base64," in svg and "font-size: 10.67px" in svg.replace("font-size:10.67", "font-size: 10.67")
