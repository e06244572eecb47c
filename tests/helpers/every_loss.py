"""Each loss of PML that takes synthetic negatives."""

from pytorch_metric_learning import losses

NUM_CLASSES, SIZE = 12, 8


def contrastive():
    return losses.ContrastiveLoss()


# Functions of the number of classes n. Several entries if an argument selects another path through the code.
WORKS = {
    "AngularLoss": lambda n: losses.AngularLoss(),
    "ArcFaceLoss": lambda n: losses.ArcFaceLoss(n, SIZE),
    "CircleLoss": lambda n: losses.CircleLoss(),
    "ContrastiveLoss": lambda n: losses.ContrastiveLoss(),
    "CosFaceLoss": lambda n: losses.CosFaceLoss(n, SIZE),
    "GeneralizedLiftedStructureLoss": lambda n: losses.GeneralizedLiftedStructureLoss(),
    "HistogramLoss": lambda n: losses.HistogramLoss(n_bins=20),
    "IntraPairVarianceLoss": lambda n: losses.IntraPairVarianceLoss(),
    "LargeMarginSoftmaxLoss": lambda n: losses.LargeMarginSoftmaxLoss(n, SIZE),
    "LiftedStructureLoss": lambda n: losses.LiftedStructureLoss(),
    "MarginLoss": lambda n: losses.MarginLoss(),
    "MarginLoss, one beta learned": lambda n: losses.MarginLoss(learn_beta=True, nu=0.1),
    "MarginLoss, betas learned": lambda n: losses.MarginLoss(learn_beta=True, nu=0.1, num_classes=n),
    "MultiSimilarityLoss": lambda n: losses.MultiSimilarityLoss(),
    "MultipleLosses": lambda n: losses.MultipleLosses([contrastive(), losses.NPairsLoss()], weights=[1, 0.5]),
    "MultipleLosses, named": lambda n: losses.MultipleLosses({"a": contrastive(), "b": losses.ProxyNCALoss(n, SIZE)}),
    "NCALoss": lambda n: losses.NCALoss(),
    "NPairsLoss": lambda n: losses.NPairsLoss(),
    "NTXentLoss": lambda n: losses.NTXentLoss(),
    "NormalizedSoftmaxLoss": lambda n: losses.NormalizedSoftmaxLoss(n, SIZE),
    "P2SGradLoss": lambda n: losses.P2SGradLoss(SIZE, n),
    "ProxyAnchorLoss": lambda n: losses.ProxyAnchorLoss(n, SIZE),
    "ProxyNCALoss": lambda n: losses.ProxyNCALoss(n, SIZE),
    "SignalToNoiseRatioContrastiveLoss": lambda n: losses.SignalToNoiseRatioContrastiveLoss(),
    "SoftTripleLoss": lambda n: losses.SoftTripleLoss(n, SIZE, centers_per_class=2),
    "SphereFaceLoss": lambda n: losses.SphereFaceLoss(n, SIZE),
    "SubCenterArcFaceLoss": lambda n: losses.SubCenterArcFaceLoss(num_classes=n, embedding_size=SIZE),
    "SupConLoss": lambda n: losses.SupConLoss(),
    "ThresholdConsistentMarginLoss": lambda n: losses.ThresholdConsistentMarginLoss(),
    "TripletMarginLoss": lambda n: losses.TripletMarginLoss(),
    "TripletMarginLoss, swap": lambda n: losses.TripletMarginLoss(swap=True, smooth_loss=True),
    "TripletMarginLoss, drawn": lambda n: losses.TripletMarginLoss(triplets_per_anchor=2, margin=0.5),
    "TupletMarginLoss": lambda n: losses.TupletMarginLoss(),
}
