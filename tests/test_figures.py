"""The figures, against plain calculations and with every kind of missing or hostile data."""

import json

import helpers_runs as made
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from scipy.spatial.distance import cosine
from sklearn.cross_decomposition import CCA

from cotmi.core import ConfigError, EstimationError
from cotmi.dashboards import bars, calibration_figures, curves, figures, intervals, pair_figures
from cotmi.information import planar_projection as projection
from cotmi.runs.run_folder import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(made.make_run(tmp_path_factory.mktemp("figures"), examples=300, hostile=True))


def every_figure(run) -> dict[str, go.Figure]:
    "Each figure of the dashboards, drawn from a run."
    f, rows = run.features, run.predictions
    plane = projection.fit_plane(f["z"], f["v"])
    places = plane(f["z"], f["v"])
    estimates = pd.DataFrame([{"label": made.HOSTILE, "value": 1.0, "low": 0.5, "high": 2.0, "mark": 4.0}])
    return {
        "loss": curves.loss_curves(run.history, 0.5, True, 100),
        "accuracy": curves.accuracy_curve(run.history, 100, 0.1),
        "mi": curves.mi_curve(run.history, 0.5, {"infonce": 4.16}),
        "lr": curves.series(run.history, "lr", "Learning rate", "learning rate (no unit)"),
        "forest": intervals.forest(estimates, "Estimates", "estimate (nats)", references={made.HOSTILE: 1.0}),
        "heat": pair_figures.heat_map(projection.cross_correlation(f["z"], f["v"], f["names"], f["names"])),
        "pairs": pair_figures.pair_map(*places, rows.assign(gold_label=made.HOSTILE), "label", selected=rows["id"][0]),
        "reliability": calibration_figures.reliability_diagram(rows),
        "confidence": calibration_figures.confidence_histogram(rows),
        "coverage": calibration_figures.risk_coverage_curve(rows),
        "labels": bars.label_bars([made.HOSTILE, "b"], [0.3, 0.7], made.HOSTILE, "b", [0.5, 0.5]),
        "seeds": curves.seed_curves({made.HOSTILE: [run.history, run.history]}, "loss", "loss (nats)"),
        "information": intervals.mi_against_accuracy(pd.DataFrame([{
            "label": made.HOSTILE, "group": "mi", "mi": 1, "mi_low": 0, "mi_high": 2, "accuracy": 0.5,
            "accuracy_low": 0.4, "accuracy_high": 0.6}])),
        "rows": bars.row_bars(pd.DataFrame({"used": [5], made.HOSTILE: [1]}, index=[made.HOSTILE])),
    }


def texts(value) -> list[str]:
    "Every text of a figure's JSON."
    if isinstance(value, dict):
        return [t for v in value.values() for t in texts(v)]
    if isinstance(value, list):
        return [t for v in value for t in texts(v)]
    return [value] if isinstance(value, str) else []


def test_no_figure_lets_data_speak_html(run):
    for name, figure in every_figure(run).items():
        for text in texts(json.loads(figure.to_json())):
            assert "<img" not in text and "<script" not in text and "<b>bold" not in text, name
    assert any("&lt;img" in t for t in texts(json.loads(every_figure(run)["forest"].to_json())))


def test_every_axis_says_what_it_is_and_its_unit(run):
    for name, figure in every_figure(run).items():
        shown = [figure.layout.xaxis]
        if name not in ("forest", "labels", "rows"): # their other axis is a list of names
            shown.append(figure.layout.yaxis)
        for axis in shown:
            assert axis.title.text, name
            known = ("(", "step", "probability", "per second")
            assert any(word in axis.title.text for word in known), (name, axis.title.text)


@pytest.mark.parametrize("theme", figures.THEMES)
def test_themes_change_the_background_and_nothing_of_the_data(run, theme):
    for figure in every_figure(run).values():
        other = figures.themed(figure, theme)
        assert other.layout.template.layout.paper_bgcolor == figures.template(theme).layout.paper_bgcolor
        assert len(other.data) == len(figure.data)
        assert figure.layout.template == figures.template("light")


def test_every_figure_says_what_is_missing():
    nothing, place = pd.DataFrame(), pd.DataFrame({"step": pd.Series(dtype=int)})
    for figure in (curves.loss_curves(place), curves.accuracy_curve(place), curves.mi_curve(place),
                   curves.series(place, "lr", "Learning rate", "no unit"), intervals.forest(nothing, "F", "nats"),
                   bars.label_bars([], []), pair_figures.heat_map(nothing),
                   calibration_figures.reliability_diagram(nothing),
                   calibration_figures.confidence_histogram(nothing), calibration_figures.risk_coverage_curve(nothing),
                   curves.seed_curves({"a": [place]}, "loss", "nats"), intervals.mi_against_accuracy(nothing),
                   bars.row_bars(nothing), curves.loss_curves(pd.DataFrame({"step": [1], "loss": [None]}))):
        assert len(figure.data) == 0
        assert len(figure.layout.annotations[0].text) > 15


def test_smoothing_is_the_debiased_moving_average():
    values, weight = np.array([3.0, 1.0, 4.0, 1.0, 5.0]), 0.7
    total, scale, expected = 0.0, 0.0, []
    for v in values:
        total, scale = weight * total + (1 - weight) * v, weight * scale + (1 - weight)
        expected.append(total / scale)
    np.testing.assert_allclose(curves.smooth(values, weight), expected)
    with pytest.raises(EstimationError, match="weight is -1"):
        curves.smooth(values, -1)


def test_missing_values_do_not_break_a_curve():
    history = pd.DataFrame({"step": [1, 2, 3], "loss": [1.0, None, 3.0], "loss/predict": ["x", None, 2.0]})
    figure = curves.loss_curves(history)
    assert list(figure.data[0].x) == [1, 3]
    assert list(figure.data[1].x) == [3]


def test_colours_are_told_apart_when_hue_is_lost():
    "Neighbouring lines differ in lightness or in a colour that the colour-blind see."
    def seen(colour, kind):
        rgb = np.array([int(colour[i:i + 2], 16) for i in (1, 3, 5)]) / 255
        mix = {"protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
               "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]}[kind]
        return np.array(mix) @ rgb # Machado et al. 2009, severity 1
    for kind in ("protan", "deutan"):
        for colours in (figures.TERMS, figures.METHOD_COLOURS):
            shades = [seen(c, kind) for c in colours.values()]
            gaps = [np.linalg.norm(a - b) for i, a in enumerate(shades) for b in shades[:i]]
            assert min(gaps) > 0.15


def test_cross_correlation_is_numpys():
    rng = np.random.default_rng(0)
    z, v = rng.normal(size=(80, 5)), rng.normal(size=(80, 7))
    table = projection.cross_correlation(z, v, top=7)
    expected = np.corrcoef(z.T, v.T)[:5, 5:]
    for row in table.index:
        for column in table.columns:
            np.testing.assert_allclose(table.loc[row, column], expected[int(row[1:]), int(column[1:])], atol=1e-9)
    ordered = projection.cross_correlation(z, v, top=7, cluster=False)
    assert list(ordered.index) == [f"z{i}" for i in np.argsort(-z.std(axis=0))]


def test_canonical_plane_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    shared = rng.normal(size=(300, 2))
    z = np.c_[shared, rng.normal(size=(300, 3))] @ rng.normal(size=(5, 5))
    v = np.c_[shared + 0.3 * rng.normal(size=(300, 2)), rng.normal(size=(300, 2))] @ rng.normal(size=(4, 4))
    a, b = projection.fit_plane(z, v, "canonical")(z, v)
    left, right = CCA(2, max_iter=5000).fit_transform(z, v)
    for k in range(2):
        ours, theirs = np.corrcoef(a[:, k], b[:, k])[0, 1], np.corrcoef(left[:, k], right[:, k])[0, 1]
        assert ours == pytest.approx(theirs, abs=1e-3)
    np.testing.assert_allclose(a.std(axis=0), 1, atol=0.01)


@pytest.mark.parametrize("method", projection.PROJECTIONS)
def test_a_plane_takes_odd_shapes(method):
    rng = np.random.default_rng(2)
    for z_width, v_width, n in ((1, 1, 5), (3, 700, 6), (2, 2, 3)):
        z, v = rng.normal(size=(n, z_width)), rng.normal(size=(n, v_width))
        for points in projection.fit_plane(z, v, method)(z, v):
            assert points.shape == (n, 2) and np.isfinite(points).all()
    constant = np.ones((5, 3))
    assert np.isfinite(projection.fit_plane(constant, constant, method)(constant, constant)[0]).all()


def test_neighbours_are_the_largest_cosines():
    values = np.random.default_rng(3).normal(size=(50, 4))
    centred = values - values.mean(axis=0)
    where, found = projection.neighbours(values, 7, 3)
    expected = sorted(((1 - cosine(centred[7], c), i) for i, c in enumerate(centred) if i != 7), reverse=True)[:3]
    assert list(where) == [i for _, i in expected]
    np.testing.assert_allclose(found, [c for c, _ in expected])


def test_a_pair_map_holds_the_pairs(run):
    f = run.features
    z, v = projection.fit_plane(f["z"], f["v"])(f["z"], f["v"])
    rows = run.predictions.set_index("id").loc[f["ids"]].reset_index()
    for colour, count in (("correct", 2), ("confidence", 1), ("label", 7)):
        figure = pair_figures.pair_map(z, v, rows, colour, lines=False)
        assert len(figure.data) == 2 * count
        points = {c[0]: (x, y) for t in figure.data[::2] for c, x, y in zip(t.customdata, t.x, t.y, strict=True)}
        assert set(points) == set(f["ids"])
        np.testing.assert_allclose(points[f["ids"][5]], z[5])
    lines = pair_figures.pair_map(z, v, rows, lines=True).data[0]
    np.testing.assert_allclose(np.c_[lines.x, lines.y][:2], [z[0], v[0]])
    assert np.isnan(lines.x[2])


def test_a_large_run_makes_small_figures(tmp_path):
    "What is sent to the browser stays small, whatever the run's size."
    big = Run(made.make_run(tmp_path, examples=6000, sample=3000))
    rows = big.predictions
    for figure in (calibration_figures.risk_coverage_curve(rows), calibration_figures.reliability_diagram(rows),
                   calibration_figures.confidence_histogram(rows)):
        assert len(figure.to_json()) < 60_000


def test_seed_bands_span_the_seeds():
    frames = [pd.DataFrame({"step": [10, 20], "valid/accuracy": a}) for a in ([0.1, 0.5], [0.3, 0.4], [0.2, 0.9])]
    band, mean = curves.seed_curves({"mi": frames}, "valid/accuracy", "accuracy (%)", tickformat=".0%").data
    np.testing.assert_allclose(mean.y, [0.2, 0.6])
    np.testing.assert_allclose(band.y, [0.3, 0.9, 0.4, 0.1])
    assert "3 seeds" in mean.name


def test_files(tmp_path, run):
    figure = calibration_figures.reliability_diagram(run.predictions)
    text = figures.save_figure(figure, tmp_path / "a" / "reliability.html").read_text()
    assert "plotly.js v" in text and "http://" not in text.split("<script", 1)[0]
    with pytest.raises(ConfigError, match="html, pdf, png, svg"):
        figures.save_figure(figure, tmp_path / "reliability.gif")
