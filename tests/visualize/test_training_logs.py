"""The figure of what the logs told."""

import math

import pytest
import torch
from helpers.contrastive_batch import LABELS, NUM_CLASSES, SIZE, make_loss
from pytorch_metric_learning import losses

from pml_gca import HardNegativeGenerationLoss
from pml_gca.generators import HardestNegativeGenerator
from pml_gca.visualize import plot_logs

pytest.importorskip("matplotlib")

TITLES = ["Metric loss", "Synthetic loss", "Terms of the generator", "Coefficients λ", "Similarity to the anchor"]
TITLES += ["Gradient norm"]


def logs_of(loss, steps=3):
    found = []
    for step in range(steps):
        torch.manual_seed(step)
        loss.zero_grad()
        loss(torch.randn(8, SIZE, requires_grad=True), LABELS).backward()
        found.append({"iterations": 10 * step, **loss.logs()})
    return found


def lines_of(ax):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines()}


def test_every_value_of_gca_is_in_its_panel(tmp_path):
    logs = logs_of(make_loss())
    figure = plot_logs(logs, title="A run")
    assert [ax.get_title() for ax in figure.axes] == TITLES
    panels = dict(zip(TITLES, figure.axes, strict=True))
    for title, label, name in (
        ("Metric loss", "of the batch", "metric_loss"),
        ("Synthetic loss", "its weight", "synthetic_weight"),
        ("Coefficients λ", "mean ± standard deviation", "lambda_mean"),
        ("Similarity to the anchor", "hardest synthetic negative", "hardest_synthetic_similarity"),
        ("Gradient norm", "generator", "generator_gradient_norm"),
    ):
        assert lines_of(panels[title])[label] == ([0, 10, 20], [entry[name] for entry in logs])
    (band,) = panels["Coefficients λ"].collections
    edges = band.get_paths()[0].vertices[:, 1]
    assert edges.max() == pytest.approx(max(entry["lambda_mean"] + entry["lambda_std"] for entry in logs))
    assert edges.min() == pytest.approx(min(entry["lambda_mean"] - entry["lambda_std"] for entry in logs))
    assert [ax.get_yscale() == "log" for ax in figure.axes] == [False] * 5 + [True]
    assert figure.get_suptitle() == "A run"
    figure.savefig(tmp_path / "watch.png")


def test_panels_and_points_without_values_are_left_out():
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), HardestNegativeGenerator(NUM_CLASSES, SIZE))
    logs = logs_of(loss)
    assert [ax.get_title() for ax in plot_logs(logs).axes] == [t for t in TITLES if t != "Coefficients λ"]
    del logs[1]["metric_loss"]
    logs[2]["synthetic_loss"] = math.inf
    first, second, *_ = plot_logs(logs).axes
    assert lines_of(first)["of the batch"][0] == [0, 20]
    assert lines_of(second)["with its weight"][0] == [0, 10]


def test_one_entry_is_a_point():
    line, *_ = plot_logs(logs_of(make_loss(), 1)).axes[0].get_lines()
    assert line.get_marker() == "o"


@pytest.mark.parametrize(
    ("logs", "message"),
    [
        ([], "logs has no values to draw"),
        ([{"iterations": 0}], "logs has no values to draw"),
        ([{"iterations": 0, "metric_loss": 1.0}, {"metric_loss": 2.0}], r"logs\[1\] lacks 'iterations'; it has"),
    ],
)
def test_bad_logs(logs, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        plot_logs(logs)
