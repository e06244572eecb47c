"""The command that runs PML's own tests on our loss: what it routes, leaves out and finds."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pml_suite
import pytest
import torch
from helpers.pml_routing import GENERATORS, Routing
from pytorch_metric_learning import losses
from pytorch_metric_learning.reducers import DoNothingReducer

from pml_gca.losses import loss_wrapper

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.fixture
def z():
    torch.manual_seed(0)
    return torch.randn(6, 8, requires_grad=True)


def test_in_evaluation_a_call_gets_the_wrapped_value(z):
    loss = losses.TripletMarginLoss(triplets_per_anchor=1)
    torch.manual_seed(1)
    expected = loss(z, LABELS)
    with Routing("eval") as routing:
        torch.manual_seed(1)
        found = loss(z, labels=LABELS, ref_emb=z, ref_labels=LABELS)
        members = losses.MultipleLosses([losses.ContrastiveLoss(), losses.ProxyAnchorLoss(3, 8)])
        members(z.detach().half().requires_grad_(), LABELS).backward()
        losses.P2SGradLoss(8, 3).double()(z.double(), LABELS)  # normalises its weights in place, with rounding
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert routing.counts == {"calls": 3, "equal": 3}
    assert "__call__" not in vars(losses.BaseMetricLossFunction)


@pytest.mark.parametrize("generator", GENERATORS)
def test_in_training_a_call_gets_the_value_of_pml(generator, z):
    loss = losses.TripletMarginLoss(triplets_per_anchor=1)
    torch.manual_seed(1)
    expected = loss(z, LABELS)
    with Routing("training", generator) as routing:
        torch.manual_seed(1)
        found = loss(z, LABELS)
        losses.NTXentLoss()(z.half(), LABELS)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert routing.counts == {"calls": 2, "finite, J_m is PML's": 2}


@pytest.mark.parametrize("mode", ["eval", "training"])
def test_errors_and_losses_that_are_refused_are_counted(mode, z):
    with Routing(mode) as routing:
        with pytest.raises(ValueError, match="embeddings"):
            losses.ContrastiveLoss()(z, LABELS[:3])
        losses.FastAPLoss()(z, LABELS)
        losses.ContrastiveLoss(reducer=DoNothingReducer())(z, LABELS)
    assert routing.counts == {"calls": 1, "raised as by PML": 1}
    assert [what.split(":")[0] for what in routing.aside] == ["FastAPLoss", "ContrastiveLoss"]


def test_a_wrong_value_dtype_or_gradient_is_found(z, monkeypatch):
    call_loss = loss_wrapper.call_loss
    for wrong in (lambda v: v + 1e-6, lambda v: v.double(), lambda v: v.detach() + 2 * (v - v.detach())):
        monkeypatch.setattr(loss_wrapper, "call_loss", lambda *args, wrong=wrong: wrong(call_loss(*args)))
        with Routing("eval") as routing:
            losses.ContrastiveLoss()(z, LABELS)
        assert routing.counts == {"calls": 1, "failures": 1}


@pytest.mark.parametrize("wrong", [lambda v: v * 1.001, lambda v: v * float("nan"), lambda v: 1 / 0])
def test_a_wrong_loss_in_training_is_found(wrong, z, monkeypatch):
    call_loss = loss_wrapper.call_loss
    monkeypatch.setattr(loss_wrapper, "call_loss", lambda *args: wrong(call_loss(*args)))
    with Routing("training") as routing:
        losses.ContrastiveLoss()(z, LABELS)
    assert routing.counts == {"calls": 1, "failures": 1}


PACKAGE = {
    "__init__.py": "",
    "test_some.py": """
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils import accuracy_calculator

def value():
    return losses.ContrastiveLoss()(torch.eye(4), torch.tensor([0, 0, 1, 1]))

def test_right():
    assert torch.initial_seed() == 0
    assert value() > 0

def test_wrong():
    assert value() < 0

def test_calculator():
    assert accuracy_calculator.AccuracyCalculator.__name__ == "AccuracyCalculator"

def test_inference():
    assert False
""",
}


def test_the_command_tells_its_failures_from_those_of_pml(tmp_path, monkeypatch, capsys):
    package = tmp_path / "stand_in_for_pml"  # a unique module name
    package.mkdir()
    for name, text in PACKAGE.items():
        (package / name).write_text(text)
    wrong = f"{package / 'test_some.py'}::test_wrong"
    again = []

    def run_by_pml_alone(command, **_):
        again.extend(command)
        return SimpleNamespace(stdout=f"failed: {wrong}\n")

    # In this module alone: plugins of the inner pytest also start processes.
    monkeypatch.setattr(pml_suite, "subprocess", SimpleNamespace(run=run_by_pml_alone))
    torch.manual_seed(1)
    monkeypatch.setattr("sys.argv", ["pml_suite.py", "--mode", "eval", str(package), "-p", "no:logging"])
    calculator = pml_suite.accuracy_calculator.AccuracyCalculator
    assert pml_suite.main()
    assert pml_suite.accuracy_calculator.AccuracyCalculator is calculator
    calculator_test = wrong.replace("test_wrong", "test_calculator")
    assert again[2:] == [wrong, calculator_test, "--mode", "plain", "-p", "no:logging"]
    printed = capsys.readouterr().out
    assert "tests: 2 failed, 1 passed; left out: 1 downloads" in printed
    assert "calls: 2 calls, 2 equal" in printed
    assert f"failed in PML as well: {wrong}\n" in printed
    assert f"failed: {calculator_test}\n" in printed


if "PML_TESTS" in os.environ:  # PML's own tests take minutes and need its sources

    @pytest.mark.parametrize("mode", ["eval", "training"])
    def test_pmls_own_tests(mode):
        command = [sys.executable, pml_suite.__file__, os.environ["PML_TESTS"], "--mode", mode]
        assert subprocess.run(command).returncode == 0
