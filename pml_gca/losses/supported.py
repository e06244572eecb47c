"""Tables of PML losses: those that take synthetic negatives, and those refused, with reason and remedy."""

from collections.abc import Callable

from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import BaseDistance
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.reducers import BaseReducer, DoNothingReducer, PerAnchorReducer
from pytorch_metric_learning.regularizers import BaseRegularizer
from torch import Tensor, nn

from ..generators.base_generator import BaseGenerator
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
    unknown_loss_message,
)

SyntheticLoss = Callable[[nn.Module, SyntheticBatch], Tensor]

SUPPORTED: dict[str, SyntheticLoss] = {
    "AngularLoss": angular_synthetic_loss,
    "GenericPairLoss": tuple_synthetic_loss,  # circle, contrastive, lifted, multi-similarity, NT-Xent, SupCon, ...
    "HistogramLoss": joint_tuple_synthetic_loss,
    "LargeMarginSoftmaxLoss": labelled_synthetic_loss,  # and ArcFace, CosFace, SphereFace, SubCenterArcFace
    "MarginLoss": tuple_synthetic_loss,
    "MultipleLosses": multiple_synthetic_loss,
    "NCALoss": nca_synthetic_loss,
    "NPairsLoss": n_pairs_synthetic_loss,
    "NormalizedSoftmaxLoss": labelled_synthetic_loss,
    "P2SGradLoss": labelled_synthetic_loss,
    "ProxyAnchorLoss": labelled_synthetic_loss,
    "ProxyNCALoss": labelled_synthetic_loss,
    "SoftTripleLoss": labelled_synthetic_loss,
    "ThresholdConsistentMarginLoss": joint_tuple_synthetic_loss,
    "TripletMarginLoss": triplet_synthetic_loss,
}
WITHOUT_REFERENCES = (
    joint_tuple_synthetic_loss,
    labelled_synthetic_loss,
    n_pairs_synthetic_loss,
    multiple_synthetic_loss,
)

SIGNATURE = "HardNegativeGenerationLoss(losses.TripletMarginLoss(), generator)"

LISTWISE = (
    "it ranks the whole batch by labels and takes no pairs. Each synthetic negative would be compared with every "
    "anchor instead of its own alone. Combine it with a loss that takes pairs: losses.MultipleLosses({'ranking': "
    "loss, 'pairs': HardNegativeGenerationLoss(losses.TripletMarginLoss(), generator)})"
)
UNLABELLED = (
    "it uses no class labels, so it has no negatives. Add it to a loss that uses them: "
    "HardNegativeGenerationLoss(losses.TripletMarginLoss(), generator)(embeddings, labels) + "
)
VIEWS = (
    "it gets no class labels, but makes them itself: each sample and its views are a class. Wrap the loss inside "
    "it: pml_gca.losses.SelfSupervisedLoss(HardNegativeGenerationLoss(loss.loss, generator)), or pass labels: "
    "HardNegativeGenerationLoss(loss.loss, generator)(torch.cat([embeddings, views]), "
    "torch.arange(len(embeddings)).repeat(2))"
)
MEMORY = (
    "it keeps a memory of embeddings that the graph does not see. Wrap the loss inside it, and let this loss remember: "
    "HardNegativeGenerationLoss(loss.loss, generator, memory_size=1024); or pass a small memory as ref_emb and "
    "ref_labels (the graph grows with the square of batch and ref_emb)"
)
BROKEN_HISTOGRAM = (
    "its histogram keeps the graph of the previous batch, so in PML itself its second backward fails. Use another "
    "loss: HardNegativeGenerationLoss(losses.TripletMarginLoss(), generator)"
)

LABELS_REQUIRED = (
    "labels are required in training: the generator needs them to make negatives of other classes. If samples have no "
    "labels, but views, let each sample be a class: loss(torch.cat([embeddings, views]), "
    "torch.arange(len(embeddings)).repeat(2)). To compute the wrapped loss alone, call loss.loss(embeddings, ...), or "
    "this one after loss.eval()."
)

REFUSED: dict[str, str] = {
    "CrossBatchMemory": MEMORY,
    "DynamicSoftMarginLoss": BROKEN_HISTOGRAM,
    "FastAPLoss": LISTWISE,
    "InstanceLoss": LISTWISE,
    "ManifoldLoss": UNLABELLED + "loss(embeddings)",
    "PNPLoss": LISTWISE,
    "RankedListLoss": LISTWISE,
    "SelfSupervisedLoss": VIEWS,
    "SmoothAPLoss": LISTWISE,
    "VICRegLoss": UNLABELLED + "loss(embeddings, ref_emb=views)",
}


def refusal(reason: str) -> SyntheticLoss:
    """Return a function to register for a loss that cannot take synthetic negatives; it raises `reason`."""

    def refuse(loss: nn.Module, batch: SyntheticBatch) -> Tensor:
        raise ValueError(f"loss {type(loss).__name__} cannot take synthetic negatives: {reason}")

    refuse.reason = reason  # type: ignore[attr-defined]
    return refuse


def register_pml_losses() -> None:
    """Register the functions of both tables with `synthetic_loss`."""
    functions = SUPPORTED | {name: refusal(reason) for name, reason in REFUSED.items()}
    for name, function in functions.items():
        if hasattr(losses, name):  # releases of PML differ
            synthetic_loss.register(getattr(losses, name), function)


register_pml_losses()


LIKE_TORCH = {
    "CosineEmbeddingLoss": "ContrastiveLoss()",
    "CrossEntropyLoss": "NormalizedSoftmaxLoss(num_classes, embedding_size)",
    "NLLLoss": "NormalizedSoftmaxLoss(num_classes, embedding_size)",
    "TripletMarginLoss": "TripletMarginLoss()",
    "TripletMarginWithDistanceLoss": "TripletMarginLoss()",
}
"""The PML loss of embeddings and labels that is most like a loss of `torch.nn`."""

PARTS = {
    BaseMiner: "miner {name}. Its pairs are for each call: loss(embeddings, labels, miner(embeddings, labels))",
    BaseDistance: "distance {name}. It belongs to a loss: losses.ContrastiveLoss(distance=...)",
    BaseReducer: "reducer {name}. It belongs to a loss: losses.ContrastiveLoss(reducer=...)",
    BaseRegularizer: "regularizer {name}. It belongs to a loss: losses.ContrastiveLoss(embedding_regularizer=...)",
}
"""What is said of a part of PML that is given as the loss."""


def mistaken_loss_message(loss: object) -> str | None:
    """Return the error message for what is given in place of a loss by mistake; None for a module of another kind."""
    kind = loss if isinstance(loss, type) else type(loss)
    name = kind.__name__
    if issubclass(kind, BaseGenerator):
        return f"loss must be a loss, got the generator {name}: pass the loss first, as in {SIGNATURE}"
    if kind.__module__ == "torch.nn.modules.loss":
        like = LIKE_TORCH.get(name)
        instead = f"the one like it, losses.{like}" if like else "one of these, such as losses.MultiSimilarityLoss()"
        return (
            f"loss must be a loss of embeddings and labels, as those of pytorch_metric_learning.losses; got {name} of "
            f"torch.nn, which takes other arguments. Take {instead}. A loss of a classifier's logits stays beside it: "
            "add the two"
        )
    for part, what in PARTS.items():
        if issubclass(kind, part):
            return f"loss must be a loss, got the {what.format(name=name)}"
    if isinstance(loss, type):
        return f"loss must be a loss, got the class {name}. Make one: {name}(...)"
    if not isinstance(loss, nn.Module):
        several = isinstance(loss, (list, tuple, dict))
        hint = ". To combine several, wrap losses.MultipleLosses" if several else f", as in {SIGNATURE}"
        return f"loss must be a loss of pytorch_metric_learning, or a torch.nn.Module of your own; got {name}{hint}"
    return None


def check_supported_loss(loss: object) -> None:
    """Raise if `loss` cannot be trained with synthetic negatives; messages say what to do instead.

    Raises:
        TypeError: the type of the loss is not registered.
        ValueError: the type is known, but refused; the message gives the reason.
    """
    function = synthetic_loss.dispatch(type(loss))
    if function is synthetic_loss.dispatch(object):
        raise TypeError(mistaken_loss_message(loss) or unknown_loss_message(loss))
    name = type(loss).__name__
    if reason := getattr(function, "reason", None):
        if hasattr(getattr(loss, "loss", None), "generator_level"):
            reason = "it has its generator already: use it as it is"
        raise ValueError(f"loss {name} cannot take synthetic negatives: {reason}")
    reducers = loss.reducer.modules() if isinstance(loss, losses.BaseMetricLossFunction) else ()
    for reducer in reducers:
        if isinstance(reducer, DoNothingReducer):
            raise ValueError(
                f"loss must reduce to a scalar, got {name} with a DoNothingReducer; give it another reducer: "
                f"losses.{name}(reducer=reducers.MeanReducer())"
            )
        if isinstance(reducer, PerAnchorReducer) and function is tuple_synthetic_loss:
            raise ValueError(
                f"loss {name} cannot take synthetic negatives with a PerAnchorReducer, which cannot handle references "
                f"outside the batch; give it another reducer: losses.{name}(reducer=reducers.MeanReducer())"
            )
    if isinstance(loss, losses.MultipleLosses):
        for member in loss.losses.values() if loss.is_dict else loss.losses:
            check_supported_loss(member)
