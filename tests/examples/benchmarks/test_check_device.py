import check_device
import pytest
import torch

from pml_gca import GlobalCorrelationGenerator
from pml_gca.generators import MixupGenerator


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Little of everything, so that a run takes no time."""
    file = "tiny_1layer.npz"
    (tmp_path / file).write_bytes((check_device.REFERENCES / file).read_bytes())
    monkeypatch.setattr(check_device, "REFERENCES", tmp_path)
    monkeypatch.setattr(check_device, "PRECISIONS", ("fp32", "bf16", "fp16"))
    monkeypatch.setattr(check_device, "REPEATED_SIZE", 16)  # processors without bf16 instructions are slow at it
    names = ("n_pairs", "proxy_anchor")
    monkeypatch.setattr(check_device, "NAMED_LOSSES", {name: check_device.NAMED_LOSSES[name] for name in names})

    def keep(*kinds):
        made = {kind.__name__: lambda kind=kind: kind(check_device.CLASSES, check_device.SIZE) for kind in kinds}
        monkeypatch.setattr(check_device, "generators", lambda: made)

    keep(GlobalCorrelationGenerator, MixupGenerator)
    return keep


def test_every_generator_is_checked():
    names = {type(make()).__name__ for make in check_device.generators().values()}
    assert {"GlobalCorrelationGenerator", "MixupGenerator", "HardnessAwareGenerator", "ClassifiedGenerator"} <= names
    assert len(names) == 9


def test_printed_report(few, capsys):
    with pytest.raises(SystemExit) as end:
        check_device.main(["--device", "cpu"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "works: 12 combinations of generator, loss and precision, a miner and a calculator; 0 failed" in printed
    errors = {}
    for line in printed.splitlines():
        if line.startswith("| tiny_1layer"):
            _, precision, *values = (cell.strip() for cell in line.strip("|").split("|"))
            errors[precision] = [float(value) for value in values]
    assert errors["fp64"] == [0.0] * 5
    for precision, low, high in (("fp32", 1e-9, 1e-6), ("fp16", 1e-6, 1e-2), ("bf16", 1e-5, 5e-2)):
        assert all(low < error < high for error in errors[precision]), precision
    assert "two runs of one seed, fp32, after five steps: parameters at most 0.0e+00 apart" in printed


def test_a_step_that_fails_is_named(few, capsys):
    class Broken(MixupGenerator):
        def generate(self, *args):
            raise RuntimeError("no room")

    few(Broken)
    with pytest.raises(SystemExit) as end:
        check_device.main(["--device", "cpu"])
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert "FAILED: Broken, n_pairs, fp32" in printed
    assert "RuntimeError: no room" in printed
    assert "6 failed" in printed


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        check_device.main([])
    assert "--device cuda: torch finds no GPU" in capsys.readouterr().err
