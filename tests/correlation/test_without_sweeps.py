"""The package without the folder of the swept form: everything works, to the same numbers."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import torch

import pml_gca

STEP = """
import json, torch
from pytorch_metric_learning import losses
import pml_gca
from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.correlation import propagation

torch.manual_seed(0)
generator = GlobalCorrelationGenerator(6, 8, num_layers=2, dropout=0.2)
loss = HardNegativeGenerationLoss(losses.MultiSimilarityLoss(), generator).double()
for level in (loss.levels.metric, loss.levels.generator):
    level.value.fill_(3.0)
embeddings = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
value = loss(embeddings, torch.tensor([2, 5, 2, 0, 5, 2, 1, 1, 4, 0, 3]))
value.backward()
tensors = {"loss": value, "embeddings": embeddings.grad, **{n: p.grad for n, p in loss.named_parameters()}}
tensors.update(loss.named_buffers())
print(json.dumps({
    "file": pml_gca.__file__,
    "sweeps": propagation.propagate_in_sweeps is not None,
    "tensors": {name: x.tolist() for name, x in tensors.items()},
}))
"""


def step(root):
    done = subprocess.run(
        [sys.executable, "-c", STEP],
        cwd=root,  # from here it imports
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_training_step_is_the_same_where_the_folder_is_deleted(tmp_path):
    package = Path(pml_gca.__file__).parent
    with torch.random.fork_rng(), redirect_stdout(io.StringIO()) as printed:
        exec(STEP, {})  # this process has imported the package with the folder
    swept = json.loads(printed.getvalue())
    assert swept["sweeps"]
    for leaves_empty_folder in (False, True):
        root = tmp_path / str(leaves_empty_folder)
        copied = shutil.copytree(package, root / "pml_gca", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.rmtree(copied / "correlation" / "sweeps")
        if leaves_empty_folder:  # Python imports it as a package without contents
            (copied / "correlation" / "sweeps").mkdir()
        plain = step(root)
        assert not plain["sweeps"]
        assert Path(plain["file"]).parent == copied
        assert set(plain["tensors"]) == set(swept["tensors"])
        for name, values in swept["tensors"].items():
            expected = torch.tensor(values, dtype=torch.float64)
            found = torch.tensor(plain["tensors"][name], dtype=torch.float64)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
