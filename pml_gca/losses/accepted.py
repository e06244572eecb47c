"""Which losses of PML take synthetic negatives, each by which function; which do not, why, and what to do instead."""

from collections.abc import Callable

from pytorch_metric_learning import losses
from pytorch_metric_learning.reducers import DoNothingReducer, PerAnchorReducer
from torch import Tensor, nn

from ..generators.base_generator import BaseGenerator
from ..utils.validation import check_embeddings
from .families import (
    SyntheticBatch,
    angular_synthetic_loss,
    joint_tuple_synthetic_loss,
    labelled_synthetic_loss,
    multiple_synthetic_loss,
    n_pairs_synthetic_loss,
    nca_synthetic_loss,
    synthetic_loss,
    triplet_synthetic_loss,
    tuple_synthetic_loss,
    unknown_loss,
)


def check_loss(loss: object) -> None:
    """Raise if ``loss`` cannot be trained with synthetic negatives; messages say what to do instead.

    Raises:
        TypeError: its type is not known.
        ValueError: its type is known, and refused; the message says why.
    """
    handler = synthetic_loss.dispatch(type(loss))
    if handler is synthetic_loss.dispatch(object):
        raise TypeError(unknown_loss(loss))
    name = type(loss).__name__
    if reason := getattr(handler, "reason", None):
        if hasattr(getattr(loss, "loss", None), "generator_level"):
            reason = "it has its generator already: use it as it is"
        raise ValueError(f"loss {name} cannot take synthetic negatives: {reason}")
    reducers = loss.reducer.modules() if isinstance(loss, losses.BaseMetricLossFunction) else ()
    for reducer in reducers:
        if isinstance(reducer, DoNothingReducer):
            raise ValueError(
                f"loss must reduce to a scalar, got one with a DoNothingReducer; give it another: "
                f"losses.{name}(reducer=reducers.MeanReducer())"
            )
        if isinstance(reducer, PerAnchorReducer) and handler is tuple_synthetic_loss:
            raise ValueError(
                f"loss {name} cannot take synthetic negatives with a PerAnchorReducer, which knows no references "
                f"outside the batch; give it another: losses.{name}(reducer=reducers.MeanReducer())"
            )
    if isinstance(loss, losses.MultipleLosses):
        for member in loss.losses.values() if loss.is_dict else loss.losses:
            check_loss(member)


def check_references(
    loss: nn.Module, generator: BaseGenerator, embeddings: Tensor, ref_emb: Tensor, ref_labels: Tensor | None
) -> None:
    """Raise if ``loss`` knows no references, as PML would, or they are no batch; before anything has changed.

    Raises:
        TypeError, ValueError: PML's implementation of the loss takes no ``ref_emb``; or the references are not as
            `BaseGenerator.forward` says. Without ``ref_labels`` they are checked as embeddings.
    """
    if synthetic_loss.dispatch(type(loss)) in WITHOUT_REFERENCES:
        raise ValueError(
            f"ref_emb is not supported by the wrapped loss, {type(loss).__name__}; let them join the batch: "
            "loss(torch.cat([embeddings, ref_emb]), torch.cat([labels, ref_labels]))"
        )
    if ref_labels is not None:
        generator.check_batch(ref_emb, ref_labels, names=("ref_emb", "ref_labels"))
    elif ref_emb is not embeddings:
        check_embeddings(ref_emb, generator.embedding_size, "ref_emb").finish()


def refused(reason: str) -> Callable[[nn.Module, SyntheticBatch], Tensor]:
    """A handler that says why a known loss cannot take synthetic negatives."""

    def refuse(loss: nn.Module, batch: SyntheticBatch) -> Tensor:
        raise ValueError(f"loss {type(loss).__name__} cannot take synthetic negatives: {reason}")

    refuse.reason = reason  # type: ignore[attr-defined]
    return refuse


LISTWISE = (
    "it ranks the whole batch by labels and takes no pairs, so it would meet each synthetic negative with every "
    "anchor, and not with its own alone. Put it beside a loss that takes them: losses.MultipleLosses({'ranking': loss, "
    "'pairs': HardNegativeGenerationLoss(losses.TripletMarginLoss(), generator)})"
)
NO_CLASSES = "it uses no class labels, and so has no negatives. Add it to a loss that takes them: "
OF_BATCH = NO_CLASSES + "HardNegativeGenerationLoss(losses.TripletMarginLoss(), generator)(embeddings, labels) + "
VIEWS = (
    "it is given no class labels, but makes them itself: each sample and its views are a class. Wrap the loss inside "
    "it: pml_gca.losses.SelfSupervisedLoss(HardNegativeGenerationLoss(loss.loss, generator)), or call that with "
    "labels: HardNegativeGenerationLoss(loss.loss, generator)(torch.cat([embeddings, views]), "
    "torch.arange(len(embeddings)).repeat(2))"
)
BROKEN_HISTOGRAM = (
    "its histogram keeps the graph of the batch before, so that in PML it fails at its second backward already. Take "
    "another: HardNegativeGenerationLoss(losses.TripletMarginLoss(), generator)"
)
MEMORY = (
    "it keeps a memory of embeddings that the graph does not see. Wrap the loss inside it: "
    "pml_gca.losses.CrossBatchMemory(HardNegativeGenerationLoss(loss.loss, generator), loss.embedding_size, "
    "memory_size=256), or pass a small memory as ref_emb and ref_labels (the graph grows with the square of batch and "
    "memory)"
)

NO_LABELS = (
    "labels are required in training, as the generator makes negatives of other classes. Of samples without labels and "
    "their views, each sample is a class: loss(torch.cat([embeddings, views]), torch.arange(len(embeddings)).repeat(2))"
    ". The wrapped loss alone is loss.loss(embeddings, ...), or this one after loss.eval()."
)

HANDLERS: dict[Callable[..., Tensor], tuple[str, ...]] = {
    tuple_synthetic_loss: (
        "GenericPairLoss",  # circle, contrastive, lifted, multi-similarity, NT-Xent, SupCon, tuplet, and others
        "MarginLoss",
    ),
    triplet_synthetic_loss: ("TripletMarginLoss",),
    joint_tuple_synthetic_loss: ("HistogramLoss", "ThresholdConsistentMarginLoss"),
    labelled_synthetic_loss: (
        "LargeMarginSoftmaxLoss",  # and ArcFace, CosFace, SphereFace, SubCenterArcFace
        "NormalizedSoftmaxLoss",
        "P2SGradLoss",
        "ProxyAnchorLoss",
        "ProxyNCALoss",
        "SoftTripleLoss",
    ),
    n_pairs_synthetic_loss: ("NPairsLoss",),
    nca_synthetic_loss: ("NCALoss",),
    angular_synthetic_loss: ("AngularLoss",),
    multiple_synthetic_loss: ("MultipleLosses",),
    refused(LISTWISE): ("FastAPLoss", "InstanceLoss", "PNPLoss", "RankedListLoss", "SmoothAPLoss"),
    refused(OF_BATCH + "loss(embeddings)"): ("ManifoldLoss",),
    refused(OF_BATCH + "loss(embeddings, ref_emb=views)"): ("VICRegLoss",),
    refused(VIEWS): ("SelfSupervisedLoss",),
    refused(MEMORY): ("CrossBatchMemory",),
    refused(BROKEN_HISTOGRAM): ("DynamicSoftMarginLoss",),
}
WITHOUT_REFERENCES = (
    joint_tuple_synthetic_loss,
    labelled_synthetic_loss,
    n_pairs_synthetic_loss,
    multiple_synthetic_loss,
)
for handler, names in HANDLERS.items():
    for name in names:
        if hasattr(losses, name):  # releases of PML differ
            synthetic_loss.register(getattr(losses, name), handler)
