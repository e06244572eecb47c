import re

import profile_step
import pytest


def test_two_tables_whose_shares_are_those_of_a_step(capsys):
    sizes = "--batch-size 9 12 --embedding-size 8 --num-layers 1 --num-heads 2 --rows 500"
    profile_step.main(sizes.split())
    printed = capsys.readouterr().out
    for batch_size in (9, 12):
        (total,) = re.findall(rf"B {batch_size}, D 8, K 1, fp32: ([\d.]+) ms a step", printed)
        assert float(total) > 0
    first, second = re.split(r"B 12, ", printed)
    for half in (first, second):
        parts, operations = re.split(r"\| operation", half)
        for table in (parts, operations):
            shares = [float(x) for x in re.findall(r"\| ([\d.]+)% \|", table)]
            assert sum(shares) == pytest.approx(100, abs=0.06 * len(shares))  # each is rounded
            assert shares == sorted(shares, reverse=True)
        assert "| EdgeUpdateBackward |" in parts
        assert "| aten::addmm |" in operations


def test_a_device_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        profile_step.main(["--device", "cuda"])
    assert "torch finds no GPU" in capsys.readouterr().err
