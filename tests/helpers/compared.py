"""The generators that GCA-HNG is compared with, for tests of what they have in common."""

import math

import torch

from helpers import oracle
from pml_gca.generators import (
    ClassifiedGenerator,
    ConstantGenerator,
    EmbeddingExpansionGenerator,
    HardestNegativeGenerator,
    HardnessAwareGenerator,
    MixupGenerator,
    RandomGenerator,
    SymmetricalSynthesisGenerator,
)
from pml_gca.generators.batch import Batch, HostValues

NUM_CLASSES, SIZE = 15, 8  # classes as in strategies.labels

PER_CLASS = {
    "constant": lambda: ConstantGenerator(NUM_CLASSES, SIZE, coefficient=0.3),
    "hardest": lambda: HardestNegativeGenerator(NUM_CLASSES, SIZE),
    "hardest, unnormalised": lambda: HardestNegativeGenerator(NUM_CLASSES, SIZE, normalize=False),
    "embedding expansion": lambda: EmbeddingExpansionGenerator(NUM_CLASSES, SIZE),
    "embedding expansion, unnormalised": lambda: EmbeddingExpansionGenerator(NUM_CLASSES, SIZE, normalize=False),
    "random": lambda: RandomGenerator(NUM_CLASSES, SIZE),
    "symmetrical synthesis": lambda: SymmetricalSynthesisGenerator(NUM_CLASSES, SIZE),
    "symmetrical synthesis, unnormalised": lambda: SymmetricalSynthesisGenerator(NUM_CLASSES, SIZE, normalize=False),
}
PER_SAMPLE = {
    "hardness-aware": lambda: HardnessAwareGenerator(NUM_CLASSES, SIZE),
    "hardness-aware, reembedded": lambda: HardnessAwareGenerator(NUM_CLASSES, SIZE, reembed=True),
    "mixup": lambda: MixupGenerator(NUM_CLASSES, SIZE),
    "mixup, unnormalised": lambda: MixupGenerator(NUM_CLASSES, SIZE, normalize=False),
}
GENERATORS = PER_CLASS | PER_SAMPLE
LEARNING = {"hardness-aware, reembedded"}  # with an objective that their negatives wait for


def classified(name, num_layers=0):
    return ClassifiedGenerator(GENERATORS[name](), num_layers=num_layers, dropout=0.0)


CLASSIFIED = {
    "hardest, classified": lambda: classified("hardest"),
    "constant, classified through the graph": lambda: classified("constant", num_layers=1),
    "symmetrical synthesis, classified": lambda: classified("symmetrical synthesis"),
    "hardness-aware, reembedded, classified": lambda: classified("hardness-aware, reembedded", num_layers=2),
}


def inside(generator):
    """The generator whose negatives these are."""
    return getattr(generator, "generator", generator)


def generate(generator, z, y, num_anchors=None, level=math.inf, **given):
    """Negatives of a batch, of values of any size, by `given` draws instead of random ones."""
    y = y.long().to(z.device)
    host = HostValues(z, y, num_classes=generator.num_classes, largest=math.inf, names=("embeddings", "labels"))
    return generator.generate(Batch(z, y, len(z) if num_anchors is None else num_anchors, host), level, **given)


def random_rows(count, seed=0, dtype=torch.float64, device="cpu", size=SIZE):
    """(count, D) rows of varied lengths that require gradient."""
    source = torch.Generator().manual_seed(seed)
    z = torch.randn(count, size, generator=source, dtype=torch.float64)
    z = z * torch.rand(count, 1, generator=source, dtype=torch.float64).add(0.2)
    return z.to(device, dtype).requires_grad_()


def anchor_rows(z, num_anchors):
    """The rows one by one, references without gradient."""
    return [row if i < num_anchors else row.detach() for i, row in enumerate(z)]


def positives_of(y, i):
    """Rows of the class of row i, from the next one on, cyclically."""
    n = len(y)
    return [(i + k) % n for k in range(1, n) if y[(i + k) % n] == y[i]]


def negative_pairs(y, num_anchors):
    """(anchor, negative) of each anchor that has a positive, as the generators order them."""
    anchors = (i for i in range(num_anchors) if positives_of(y, i))
    return [(i, j) for i in anchors for j in range(len(y)) if y[j] != y[i]]


def check_against(negatives, expected, z):
    """Negatives are those expected, [(anchor, label, row)], and so is their gradient with respect to z."""
    assert negatives.anchors.tolist() == [i for i, _, _ in expected]
    assert negatives.labels.tolist() == [label for _, label, _ in expected]
    if not expected:
        return
    wanted = torch.stack([row for _, _, row in expected])
    torch.testing.assert_close(negatives.embeddings, wanted)
    weight = torch.randn_like(wanted)
    sums = [(rows * weight).sum() + 0 * z.sum() for rows in (negatives.embeddings, wanted)]  # wanted may be references
    torch.testing.assert_close(*(torch.autograd.grad(total, z, retain_graph=True) for total in sums))


def interpolated(z, y, coefficients, draws, strength, num_anchors):
    """Negatives by the oracle of GCA-HNG, with references without gradient."""
    rows = torch.cat([z[:num_anchors], z[num_anchors:].detach()])
    return oracle.synthesize(rows, y, coefficients, draws, strength, num_anchors)
