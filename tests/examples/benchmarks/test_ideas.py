"""Every idea and its controls take a step on a tiny batch."""

import pytest
import torch
from comparison import training
from comparison.ideas import IDEAS, NEED_PROXIES, TO_CONTROLS
from comparison.plan import misfit
from comparison.registry import ALL
from helpers.comparison import cell
from torch import nn

CLASSES = 6


class TinyData:
    """4 images of each of 6 classes."""

    def __init__(self):
        self.labels = torch.arange(CLASSES).repeat_interleave(4)
        self.num_classes = CLASSES
        self.images = torch.randn(len(self.labels), 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, rows):
        return [(self.images[row], self.labels[row].item()) for row in rows]


class TinyNetwork(nn.Module):
    """A trunk and a head."""

    num_features = 12

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.ReLU())
        self.head = nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, 8))

    def features(self, images):
        return self.trunk(images)

    def forward(self, images):
        return self.head(self.features(images))

    def parameter_groups(self, lr):
        return [{"params": list(self.parameters()), "lr": lr}]


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(training, "load_split", lambda settings, inputs, name: TinyData())
    monkeypatch.setattr(training, "build_network", lambda settings, inputs: TinyNetwork())


@pytest.mark.parametrize("name", IDEAS)
def test_each_row_takes_steps_that_change_its_gradient(name, tiny):
    fitting = [loss for loss in ("multi_similarity", "proxy_anchor", "n_pairs") if misfit(loss, name) is None]
    assert fitting
    for loss in fitting:
        gradients = []
        for contender in (name, "none"):
            run = training.Run(cell(contender, loss=loss))
            for _ in range(2):
                run.step()
            parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
            assert all(p.isfinite().all() for p in parameters)
            gradients.append(torch.cat([p.grad.flatten() for p in run.network.parameters()]))
            assert gradients[-1].isfinite().all()
            assert gradients[-1].norm() > 0
        assert not torch.allclose(*gradients)


def test_rows_need_no_trials_of_their_own_and_differ_from_their_controls():
    for name, row in IDEAS.items():
        assert row.tuned_as in ("none", "gca_published"), name
        assert row.tuned == {}
    assert len({row.title for row in ALL.values()}) >= len({row.title for row in IDEAS.values()}) == len(IDEAS)
    for control, name in TO_CONTROLS:
        assert (ALL[control].make, ALL[control].settings) != (ALL[name].make, ALL[name].settings)


def test_rows_that_do_not_fit_a_loss_are_named():
    for name in NEED_PROXIES:
        assert misfit("proxy_anchor", name) is None
        reason = str(misfit("multi_similarity", name))
        assert reason.startswith(f"{name} changes how proxies learn, and multi_similarity has none")
    reason = str(misfit("proxy_anchor", "h6_coin"))
    assert reason.startswith("h6_coin makes new classes, and proxy_anchor has proxies of the training")
    assert misfit("proxy_anchor", "h6_dropped") is None
