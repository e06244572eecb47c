"""The timed work: a step of training with the generator, a step of a trunk, and bare matrix products."""

import functools
import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import naive
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import DotProductSimilarity
from torch import Tensor

from cost.case import Case
from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss

LEVEL = 4.0  # of both running means: finite, so synthetic negatives are pulled and have a weight


class Workload:
    """A generator, a batch and optimizers, ready for timing.

    Args:
        case: how to compute.
        dropout: of the edge attention.
    """

    def __init__(self, case: Case, dropout: float = 0.1) -> None:
        torch.manual_seed(0)
        self.case = case
        self.generator = GlobalCorrelationGenerator(
            case.num_classes,
            case.embedding_size,
            num_layers=case.num_layers,
            num_heads=case.num_heads,
            dropout=dropout,
            edge_chunk_size=case.edge_chunk_size,
            classify_among=case.classify_among,
        ).to(case.device)
        if case.compile:  # as users are told to, in docs/performance.md
            self.generator.compile(fullgraph=True, mode="reduce-overhead" if case.device == "cuda" else None)
        # As in the paper, embeddings are not normalised.
        self.metric_loss = losses.NPairsLoss(distance=DotProductSimilarity(normalize_embeddings=False))
        self.loss = HardNegativeGenerationLoss(self.metric_loss, self.generator).to(case.device)
        for level in ("metric", "generator"):
            getattr(self.loss.levels, level).value.fill_(LEVEL)
        groups = self.generator.parameter_groups(lr=1.5e-4)

        def adamw(groups: list[dict[str, Any]], fused: bool | None = None) -> torch.optim.Optimizer:
            own = [dict(group) for group in groups]  # an optimizer writes its options into them
            return torch.optim.AdamW(own, weight_decay=1e-4, capturable=case.cuda_graph, fused=fused)

        self.optimizer, self.fused_optimizer = adamw(groups), adamw(groups, fused=True)
        self.naive_optimizers = adamw(groups[:1]), adamw(groups[1:])
        self.set_batch(case.batch_size)

    def set_batch(self, size: int) -> None:
        """Draw `size` random embeddings, sorted by class, and the weights of `propagation`'s outputs."""
        case = self.case
        source = torch.Generator().manual_seed(size)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=source).to(case.device)

        self.embeddings = draw(size, case.embedding_size).requires_grad_()
        self.labels = torch.arange(size, device=case.device) // case.samples_per_class
        self.logit_weights, self.node_weights = draw(size, case.num_classes), draw(size)
        self.channel_weights = draw(case.embedding_size)

    def propagation(self) -> None:
        """Propagate the graph once, forward and backward. The rest of a step is small, and the same for both."""
        leaf = self.embeddings.detach().requires_grad_()
        w = self.node_weights
        with self.case.arithmetic():
            if self.case.is_naive:
                logits, coefficients = naive.propagate(self.generator, leaf, self.labels)
                edge_weights = w[:, None] * w
            else:
                correlations = self.generator.propagation(leaf, self.labels)
                logits, coefficients = correlations.node_logits, correlations.coefficients
                first, second = correlations.pairs
                # One undirected edge stands for two ordered ones, and gets the weight of both.
                edge_weights = w[first] * w[second] * torch.where(first == second, 1, 2)
        per_edge = coefficients @ self.channel_weights.to(coefficients.dtype)
        value = (logits * self.logit_weights).sum() + (per_edge * edge_weights).sum()
        # A compiled graph keeps the choice of its first backward pass, and a step of the loss needs a second one.
        value.backward(retain_graph=self.case.compile)
        self.generator.zero_grad(set_to_none=True)

    def loss_alone(self) -> None:
        """Compute the wrapped loss of the batch, forward and backward, without the generator."""
        with self.case.arithmetic():
            value = self.metric_loss(self.embeddings, self.labels)
        value.backward()
        self.embeddings.grad = None

    def optimize(self) -> None:
        """Take one step of AdamW, as it is by default."""
        self.take(self.optimizer)

    def optimize_fused(self) -> None:
        """Take one step of AdamW with `fused=True`."""
        self.take(self.fused_optimizer)

    def take(self, optimizer: torch.optim.Optimizer) -> None:
        """Take one step with gradients of zero, which the first call allocates."""
        for parameter, zeros in self.zeros.items():
            parameter.grad = zeros
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @functools.cached_property
    def zeros(self) -> dict[torch.nn.Parameter, Tensor]:
        """A gradient of zero for each parameter of the generator."""
        return {parameter: torch.zeros_like(parameter) for parameter in self.generator.parameters()}

    def step(self) -> None:
        """Do everything that the generator adds to a training iteration, the optimizer's step included."""
        if self.case.is_naive:
            with self.case.arithmetic():
                naive.iteration(
                    self.generator,
                    self.embeddings,
                    self.labels,
                    self.metric_loss,
                    self.naive_optimizers,
                    levels=(LEVEL, LEVEL),
                )
        else:
            with self.case.arithmetic():
                loss = self.loss(self.embeddings, self.labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        self.generator.zero_grad(set_to_none=True)
        self.embeddings.grad = None


def trunk_step(case: Case, name: str, image_size: int) -> Callable[[], None]:
    """Return a function that runs a torchvision classifier forward and backward on a batch of images.

    Args:
        case: batch size, precision and device.
        name: of the classifier, such as resnet50.
        image_size: side of the images, in pixels.
    """
    torch.manual_seed(0)
    network = torchvision_models().get_model(name, weights=None).to(case.device).train()
    images = torch.randn(case.batch_size, 3, image_size, image_size, device=case.device)

    def step() -> None:
        with case.arithmetic():
            output = network(images)
        outputs = output if isinstance(output, tuple) else (output,)  # some models have auxiliary classifiers
        torch.stack([o.float().mean() for o in outputs]).sum().backward()
        network.zero_grad(set_to_none=True)

    return step


def torchvision_models() -> Any:
    """Import `torchvision.models`, which only the option --trunk needs."""
    return importlib.import_module("torchvision.models")


def matrix_products(case: Case) -> tuple[Callable[[], None], int]:
    """Return a function that computes the matrix products of an edge MLP and nothing else, and its multiply-adds.

    It computes the products of the forward and of the backward pass.
    """
    d = case.embedding_size
    limit = 4e12 if case.device == "cuda" else 2.5e10  # multiply-adds; takes well under a second
    rows = min(case.batch_size * (case.batch_size + 1) // 2, max(1, int(limit / (24 * d * d))))
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    shapes = ((rows, d), (rows, 4 * d), (4 * d, d), (d, 4 * d))
    narrow, wide, expand, contract = (torch.randn(shape, device=case.device, dtype=dtype) for shape in shapes)

    factors = [(narrow, expand.t()), (wide, contract.t())]  # forward
    factors += [(narrow, contract), (wide, expand), (narrow.t(), wide), (wide.t(), narrow)]  # backward
    products = [a @ b for a, b in factors]

    def multiply() -> None:
        with torch.no_grad(), case.arithmetic():
            for (a, b), product in zip(factors, products, strict=True):
                torch.mm(a, b, out=product)

    return multiply, 24 * d * d * rows


def deviation_from_fp32(case: Case) -> tuple[float, float]:
    """Compute without dropout in the case's precision and in fp32.

    Returns:
        The largest absolute difference of a coefficient, and the relative difference of the loss.
    """
    coefficients, totals = [], []
    for precision in ("fp32", case.precision):
        work = Workload(replace(case, precision=precision), dropout=0.0)
        with torch.no_grad(), work.case.arithmetic():
            coefficients.append(work.generator.propagation(work.embeddings, work.labels).coefficients.float())
        for _ in range(2):  # the second step uses the levels that the first one has observed
            torch.manual_seed(1)
            with work.case.arithmetic():
                total = work.loss(work.embeddings, work.labels)
        totals.append(total.item())
    return (coefficients[0] - coefficients[1]).abs().max().item(), abs(totals[1] / totals[0] - 1)
