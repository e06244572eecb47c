"""The program of two processes without gathering: run every case once.

python -m helpers.two_processes FOLDER 2
"""

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from torch.nn.parallel import DistributedDataParallel

from helpers.processes import join, start
from pml_gca import GlobalCorrelationGenerator, GlobalCorrelationMiner, HardNegativeGenerationLoss
from pml_gca.trainers import AlternatingTrainer

WORLD, CLASSES, D, ROWS = 2, 6, 8, 6
WRAPPED = {
    "contrastive": losses.ContrastiveLoss,
    "multi_similarity": losses.MultiSimilarityLoss,
    "triplet": losses.TripletMarginLoss,
    "n_pairs": losses.NPairsLoss,
    "proxy_anchor": lambda: losses.ProxyAnchorLoss(CLASSES, D),
}
TAKE_NO_REFERENCES = ("n_pairs", "proxy_anchor")  # in PML
USUAL = [0, 0, 1, 1, 2, 2]
LABELS = {  # of each process
    "usual": (USUAL, USUAL),
    "one class": ([3] * 6, [3] * 6),
    "singletons": ([0, 1, 2, 3, 4, 5],) * 2,
    "no negatives in one process": (USUAL, [0] * 6),
    "no positives in one process": (USUAL, [0, 1, 2, 3, 4, 5]),
    "one sample in one process": (USUAL, [4]),
    "nothing in one process": (USUAL, []),
}


def make_loss(wrapped="contrastive"):
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(CLASSES, D, num_layers=1, num_heads=2, dropout=0.0)
    return HardNegativeGenerationLoss(WRAPPED[wrapped](), generator, collect_stats=True)


def make_batch(rank, rows=ROWS):
    torch.manual_seed(10 + rank)
    return torch.randn(ROWS, D)[:rows].clone().requires_grad_()


def gradients(loss):
    return {name: None if p.grad is None else p.grad.clone() for name, p in loss.named_parameters()}


def seen(module, loss, embeddings, labels, rounds=1):
    """Return everything that tests check: value, gradients, counts."""
    try:
        for _ in range(rounds):
            embeddings.grad = None
            loss.zero_grad()
            value = module(embeddings, labels)
            value.backward()
    except ValueError as error:
        return {"error": str(error)}
    return {
        "value": value.detach(),
        "embeddings": embeddings.grad,
        "parameters": gradients(loss),
        "num_negatives": loss.generator.num_negatives,
        "num_skipped_anchors": loss.generator.num_skipped_anchors,
    }


def in_parallel(loss):
    # Each step of an iteration leaves some parameters without gradient.
    return DistributedDataParallel(DistributedLossWrapper(loss), find_unused_parameters=True)


ALTERNATING = {
    "one": in_parallel,
    "itself": lambda loss: DistributedDataParallel(loss, find_unused_parameters=True),
    "within": lambda loss: losses.MultipleLosses([in_parallel(loss), in_parallel(losses.ProxyAnchorLoss(CLASSES, D))]),
}


def train_alternating(rank, holder):
    """Return the parameters of the loss before and after a few iterations on batches of this process."""
    loss = make_loss()
    torch.manual_seed(20)
    metric_loss = ALTERNATING[holder](loss)
    before = {name: p.detach().clone() for name, p in loss.named_parameters()}
    make_trainer(rank, metric_loss).train()
    after = {name: p.detach().clone() for name, p in loss.named_parameters()}
    return {"before": before, "after": after, "restored": "forward" not in vars(loss)}


def make_trainer(rank, metric_loss):
    torch.manual_seed(30 + rank)
    data = torch.utils.data.TensorDataset(torch.randn(ROWS, D), torch.tensor(USUAL))
    return AlternatingTrainer(
        models={"trunk": torch.nn.Identity()},
        optimizers={"metric_loss_optimizer": torch.optim.SGD(metric_loss.parameters(), lr=1e-2)},
        batch_size=ROWS,
        loss_funcs={"metric_loss": metric_loss},
        dataset=data,
        iterations_per_epoch=3,
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
    )


def run_process(rank, world, folder):
    join(rank, world, folder)
    results = {}
    labels = torch.tensor(USUAL)
    for efficient in (False, True):
        for name in WRAPPED:
            loss = make_loss(name)
            module = DistributedLossWrapper(loss, efficient=efficient)
            results["wrapper", efficient, name] = seen(module, loss, make_batch(rank), labels)
        for name, own in (("alone", range(3 * rank, 3 * rank + 3)), ("matched", range(3))):
            loss = make_loss()
            module = DistributedLossWrapper(loss, efficient=efficient)
            results["wrapper", efficient, name] = seen(module, loss, make_batch(rank, 3), torch.tensor(list(own)))
        loss = make_loss()
        module = DistributedDataParallel(DistributedLossWrapper(loss, efficient=efficient))
        results["ddp of wrapper", efficient] = seen(module, loss, make_batch(rank), labels)
        miner = DistributedMinerWrapper(
            GlobalCorrelationMiner(make_loss().generator, negatives_per_anchor=2), efficient=efficient
        )
        results["miner", efficient] = miner(make_batch(rank), labels)
    for name, per_rank in LABELS.items():
        loss = make_loss()
        own = torch.tensor(per_rank[rank], dtype=torch.long)
        module = DistributedDataParallel(loss, find_unused_parameters=False)
        results["ddp", name] = seen(module, loss, make_batch(rank, len(own)), own, rounds=2)
    for holder in ALTERNATING:
        results["alternating", holder] = train_alternating(rank, holder)
    try:
        make_trainer(rank, DistributedDataParallel(make_loss()))
    except ValueError as error:
        results["alternating", "without"] = str(error)
    return results


if __name__ == "__main__":
    start(run_process)
