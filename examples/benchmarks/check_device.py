"""Check pml-gca on a device: whether it works, what makes the host wait, and how exact the results are."""

import sys

from cost.parsers import check_device_parser

if __name__ == "__main__":
    check_device_parser().parse_args()  # shows --help and typing errors before the imports below, which take seconds

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cost.case import arithmetic, processor_name
from pytorch_metric_learning import losses
from torch import Tensor

import pml_gca.generators
from pml_gca import GlobalCorrelationGenerator, GlobalCorrelationMiner, HardNegativeGenerationLoss
from pml_gca.generators import BaseGenerator, ClassifiedGenerator, HardestNegativeGenerator
from pml_gca.losses.families import SyntheticBatch, synthetic_loss
from pml_gca.losses.named_losses import NAMED_LOSSES, n_pairs
from pml_gca.paper import load_published_generator
from pml_gca.utils import RecallCalculator
from pml_gca.utils.command_line import told_when_stopped
from pml_gca.utils.tables import markdown_table

CLASSES, SIZE, BATCH = 20, 64, 30
REPEATED_CLASSES, REPEATED_SIZE, REPEATED_BATCH = 100, 128, 81
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
REFERENCES = Path(__file__).parents[2] / "tests" / "data"


def main(argv: list[str] | None = None) -> None:
    parser = check_device_parser()
    args = parser.parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    device = torch.device(args.device)
    print(f"{processor_name(device.type)}, torch {torch.__version__}\n")
    failures = works(device)
    if device.type == "cuda":
        waits(device)
    exact(device)
    repeats(device)
    sys.exit(min(failures, 1))


def generators() -> dict[str, Callable[[], Any]]:
    """Return a function that builds a small generator, for every class of `pml_gca.generators`."""
    made: dict[str, Callable[[], Any]] = {}
    for name in pml_gca.generators.__all__:
        kind = getattr(pml_gca.generators, name)
        takes_sizes = kind not in (BaseGenerator, ClassifiedGenerator)
        if isinstance(kind, type) and issubclass(kind, BaseGenerator) and takes_sizes:
            made[name] = partial(kind, CLASSES, SIZE)
    for layers in (0, 1):
        made[f"ClassifiedGenerator, {layers} layers"] = partial(classified, layers)
    return made


def classified(num_layers: int) -> ClassifiedGenerator:
    """Return the hardest real negatives with a node classification beside them."""
    return ClassifiedGenerator(HardestNegativeGenerator(CLASSES, SIZE), num_layers=num_layers)


def batch(device: torch.device, size: int = BATCH, channels: int = SIZE) -> tuple[Tensor, Tensor]:
    """Return embeddings (size, channels) that require a gradient, and their labels, three of each class."""
    source = torch.Generator().manual_seed(0)
    embeddings = torch.randn(size, channels, generator=source).to(device)
    return embeddings.requires_grad_(), (torch.arange(size) // 3).to(device)


def works(device: torch.device) -> int:
    """Train and evaluate each combination of generator, loss and precision. Return the number of failures.

    Try a miner and a calculator, too.
    """
    failed = steps = 0
    for (generator, make), (name, loss_of), precision in (
        (g, n, p) for g in generators().items() for n in NAMED_LOSSES.items() for p in PRECISIONS
    ):
        steps += 1
        try:
            train(make(), loss_of(CLASSES, SIZE), precision, device)
        except Exception:
            failed += 1
            print(f"FAILED: {generator}, {name}, {precision}")
            traceback.print_exc(limit=-4, file=sys.stdout)
    try:
        embeddings, labels = batch(device)
        triplets = GlobalCorrelationMiner(GlobalCorrelationGenerator(CLASSES, SIZE).to(device))(embeddings, labels)
        assert len(triplets[0]), "no triplet mined"
        RecallCalculator(recall_at=(1, 2)).get_accuracy(embeddings.detach(), labels, embeddings.detach(), labels, True)
    except Exception:
        failed += 1
        traceback.print_exc(limit=-4, file=sys.stdout)
    print(f"works: {steps} combinations of generator, loss and precision, a miner and a calculator; {failed} failed\n")
    return failed


def train(generator: Any, inner: torch.nn.Module, precision: str, device: torch.device) -> None:
    """Train two steps, evaluate, and assert that loss, gradients and parameters are finite."""
    torch.manual_seed(0)
    loss = HardNegativeGenerationLoss(inner, generator).to(device)
    embeddings, labels = batch(device)
    groups = [group for group in loss.parameter_groups(lr=1e-3) if group["params"]]
    optimizer = torch.optim.AdamW(groups) if groups else None  # a GradScaler steps none without parameters
    scaler = torch.amp.GradScaler(device.type, init_scale=256.0, enabled=precision == "fp16")
    for _ in range(2):
        embeddings.grad = None
        with arithmetic(precision, device.type):
            value = loss(embeddings @ torch.eye(SIZE, device=device), labels)  # in the precision of a network's output
        scaler.scale(value).backward()
        if optimizer is not None:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert value.device == embeddings.device, f"the loss is on {value.device}"
        assert value.isfinite(), f"the loss is {value}"
        assert embeddings.grad is not None
        assert embeddings.grad.isfinite().all(), "a gradient of the embeddings is not finite"
    assert all(p.isfinite().all() for p in loss.parameters()), "a parameter is not finite"
    assert all(p.dtype == torch.float32 for p in loss.parameters()), "a parameter has lost its precision"
    with torch.no_grad():
        assert loss.eval()(embeddings, labels).isfinite()


def waits(device: torch.device) -> None:
    """Print where the host waits for the GPU in a forward and backward pass, by file and line."""
    references = batch(device, 12)
    for name in ("n_pairs", "contrastive", "multi_similarity", "proxy_anchor"):
        loss = HardNegativeGenerationLoss(NAMED_LOSSES[name](CLASSES, SIZE), GlobalCorrelationGenerator(CLASSES, SIZE))
        embeddings, labels = batch(device)
        for given in ((), (None, *(x.detach() for x in references))):
            if given and name in ("n_pairs", "proxy_anchor"):
                continue
            loss.to(device)(embeddings, labels, *given).backward()
            found = waited(partial(train_once, loss, embeddings, labels, *given))
            print(f"waits of {name}{', with ref_emb' if given else ''}: {sum(found.values())}")
            for place, count in sorted(found.items()):
                print(f"    {count} x {place}")
    generator = GlobalCorrelationGenerator(CLASSES, SIZE).to(device)
    on_device = batch(device)
    found = waited(lambda: sum(generator.generate(generator.batch(*on_device)).objectives.values()).backward())
    print(f"waits of the generator alone: {sum(found.values())}, {dict(found)}\n")


def train_once(loss: torch.nn.Module, *batch: Tensor | None) -> None:
    """Run the loss forward and backward."""
    loss(*batch).backward()


def waited(work: Callable[[], Any]) -> Counter[str]:
    """Count the waits for the GPU in `work`, by the file and line that torch reports."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    seen = [w for w in caught if "synchronizing CUDA operation" in str(w.message)]
    return Counter("/".join(Path(w.filename).parts[-3:]) + f":{w.lineno}" for w in seen)


def exact(device: torch.device) -> None:
    """Print errors relative to the CPU in float64, for each reference file and precision."""
    names = ("coefficients", "synthetic", "loss", "embeddings' gradient", "parameters' gradient")
    rows = []
    for path in sorted(REFERENCES.glob("*.npz")):
        with np.load(path) as file:
            if "meta.num_heads" not in file or "embeddings" not in file:
                continue
            data = {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
        expected = everything(data, torch.device("cpu"), "fp32", torch.float64)
        for precision in ("fp64", *PRECISIONS):
            dtype = torch.float64 if precision == "fp64" else torch.float32
            found = everything(data, device, precision, dtype)
            errors = [
                (torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)).item()
                for a, b in zip(found, expected, strict=True)
            ]
            rows.append([path.stem, precision, *(f"{error:.1e}" for error in errors)])
    table = markdown_table(["reference file", "precision", *names], rows, left=2)
    print(f"relative errors against the CPU in float64, |a - b| / |b|\n\n{table}\n")


def everything(data: dict[str, Tensor], device: torch.device, precision: str, dtype: torch.dtype) -> list[Tensor]:
    """Compute a reference file in a precision on a device.

    Returns:
        Coefficients, synthetic negatives, the loss, and its gradients with respect to embeddings and parameters, moved
        to the CPU and to float64.
    """
    meta = {name.removeprefix("meta."): value.item() for name, value in data.items() if name.startswith("meta.")}
    state = {name.removeprefix("state."): value for name, value in data.items() if name.startswith("state.")}
    weights = ("alpha", "classification_weight", "similarity_weight", "diversity_weight")
    generator = load_published_generator(
        state, num_heads=int(meta["num_heads"]), dropout=0.0, **{name: meta[name] for name in weights}
    ).to(device, dtype)
    labels = data["labels"].to(device)
    rank = torch.arange(len(labels)) // meta["num_sampled_classes"]
    draws = data["out.random_weighting_draws"][rank][:, rank].to(device, dtype)
    z = data["embeddings"].detach().to(device, dtype, copy=True).requires_grad_()
    with arithmetic(precision, device.type):
        coefficients = generator.propagation(z.detach(), labels).coefficients
        negatives = generator.generate(generator.batch(z, labels, len(z)), meta["metric_level"], draws=draws)
        loss = synthetic_loss(n_pairs(), SyntheticBatch(z, labels, z, labels, negatives))
        loss = loss + sum(negatives.objectives.values())
    scale = 1024.0 if precision == "fp16" else 1.0  # as a gradient scaler does
    (loss * scale).backward()
    assert z.grad is not None
    by_parameter = torch.cat([p.grad.flatten() for p in generator.parameters() if p.grad is not None])
    found = (coefficients, negatives.embeddings, loss, z.grad / scale, by_parameter / scale)
    return [value.detach().cpu().double() for value in found]


def repeats(device: torch.device) -> None:
    """Print how far the parameters of two runs of one seed are apart after five steps."""
    for precision in ("fp32", "bf16"):
        runs = []
        for _ in range(2):
            torch.manual_seed(0)
            generator = GlobalCorrelationGenerator(REPEATED_CLASSES, REPEATED_SIZE)
            inner = losses.ProxyAnchorLoss(REPEATED_CLASSES, REPEATED_SIZE)
            loss = HardNegativeGenerationLoss(inner, generator).to(device)
            optimizer = torch.optim.AdamW(loss.parameter_groups(lr=1e-3))
            embeddings, labels = batch(device, REPEATED_BATCH, REPEATED_SIZE)
            for _ in range(5):
                with arithmetic(precision, device.type):
                    value = loss(embeddings, labels)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
            runs.append(torch.cat([p.detach().flatten() for p in loss.parameters()]))
        apart = (runs[0] - runs[1]).abs().max().item()
        print(f"two runs of one seed, {precision}, after five steps: parameters at most {apart:.1e} apart")


if __name__ == "__main__":
    with told_when_stopped("nothing is kept"):
        main()
