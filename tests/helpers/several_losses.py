"""Losses with a generator beside others in several containers, trained, and every step written out."""

import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import nn
from torch.utils.data import SequentialSampler, TensorDataset

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2])
EPOCHS, ITERATIONS, WEIGHT = 2, 3, 0.7  # the trainer's weight of the metric loss


def generating(wrapped=losses.ContrastiveLoss, generator=None, **kwargs):
    generator = generator or GlobalCorrelationGenerator(3, 8, num_layers=1, num_heads=2, dropout=0.0)
    return HardNegativeGenerationLoss(wrapped(), generator, level_momentum=None, **kwargs).double()


class CountedProxies(losses.ProxyAnchorLoss):
    calls = 0

    def forward(self, *args):
        self.calls += 1
        return super().forward(*args)


class CountedMiner(miners.MultiSimilarityMiner):
    calls = 0

    def forward(self, *args):
        self.calls += 1
        return super().forward(*args)


class Sum(nn.Module):
    """A custom combination of losses."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None):
        return sum(2 * part(embeddings, labels, indices_tuple) for part in self.parts)


def as_list(first, proxies, second):
    return losses.MultipleLosses([first, proxies, second], [CountedMiner(), CountedMiner(), None])


def as_dict(first, proxies, second):
    weights = {"mine": 0.5, "plain": 2.0, "also_mine": 3.0}
    return losses.MultipleLosses(dict(zip(weights, (first, proxies, second), strict=True)), weights=weights)


def nested(first, proxies, second):
    inner = losses.MultipleLosses([proxies, second], weights=[0.1, 4])
    return losses.MultipleLosses([losses.MultipleLosses([first]), inner], weights=[2, 0.5])


def in_wrappers(first, proxies, second):
    return losses.MultipleLosses([DistributedLossWrapper(first), proxies, DistributedLossWrapper(second)])


HOLDERS = {  # with the factor of each loss in the metric loss
    as_list: (1, 1, 1),
    as_dict: (0.5, 2, 3),
    nested: (2, 0.05, 2),
    in_wrappers: (1, 1, 1),
    Sum: (2, 2, 2),
}


def make(holder):
    torch.manual_seed(0)
    proxies = CountedProxies(3, 8).double()
    embedder = nn.Linear(5, 8).double()
    metric_loss = holder(generating(), proxies, generating(losses.MultiSimilarityLoss, beta=9.0))
    return embedder, metric_loss, proxies, torch.randn(len(LABELS), 5, dtype=torch.float64)


def make_optimizers(embedder, metric_loss):
    return {
        "embedder_optimizer": torch.optim.AdamW(embedder.parameters(), lr=3e-3),
        "metric_loss_optimizer": torch.optim.AdamW(metric_loss.parameters(), lr=2e-3, weight_decay=0.1),
    }


def train(trainer_class, embedder, metric_loss, images, optimizers=None, first=1, epochs=EPOCHS, **kwargs):
    """Train, and return the trainer with a `history` of the total loss of every iteration."""
    data, history = TensorDataset(images, LABELS), []
    trainer = trainer_class(
        models={"trunk": nn.Identity(), "embedder": embedder},
        optimizers=make_optimizers(embedder, metric_loss) if optimizers is None else optimizers,
        loss_funcs={"metric_loss": metric_loss},
        dataset=data,
        sampler=SequentialSampler(data),
        batch_size=len(LABELS),
        iterations_per_epoch=ITERATIONS,
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
        loss_weights={"metric_loss": WEIGHT},
        end_of_iteration_hook=lambda t: history.append(t.losses["total_loss"].item()),
        **kwargs,
    )
    trainer.train(start_epoch=first, num_epochs=epochs)
    trainer.history = history
    return trainer


def in_phase(loss, phase, *batch):
    if not isinstance(loss, HardNegativeGenerationLoss):
        return loss(*batch)
    with loss.phase(phase):
        return loss(*batch)


def written_out(holder, embedder, metric_loss, images, alternating):
    """Return the total loss of every iteration, with all calls and steps written out by hand."""
    members = [m for m in metric_loss.modules() if isinstance(m, (HardNegativeGenerationLoss, CountedProxies))]
    members = [(loss, WEIGHT * factor) for loss, factor in zip(members, HOLDERS[holder], strict=True)]
    generating = [member for member in members if isinstance(member[0], HardNegativeGenerationLoss)]
    twice = {p for loss, _ in generating for p in loss.generator.propagation.parameters()} if alternating else ()
    optimizers, totals = make_optimizers(embedder, metric_loss), []

    def zero_grad():
        for p in [*embedder.parameters(), *metric_loss.parameters()]:
            p.grad = torch.zeros_like(p) if p.grad is not None and p in twice else None

    for _ in range(EPOCHS):
        for _ in range(ITERATIONS):
            zero_grad()
            z, total = embedder(images), 0
            for i, (loss, factor) in enumerate(members):
                pairs = miners.MultiSimilarityMiner()(z, LABELS) if holder is as_list and i < 2 else None
                total = total + factor * in_phase(loss, "embedding" if alternating else "all", z, LABELS, pairs)
            total.backward()
            for optimizer in optimizers.values():
                optimizer.step()
            if alternating:
                zero_grad()
                second = sum(f * in_phase(loss, "generation", z.detach(), LABELS) for loss, f in generating)
                second.backward()
                optimizers["metric_loss_optimizer"].step()
                total = total + second
            totals.append(total.item())
        for loss, _ in generating:
            loss.end_epoch()
    return totals
