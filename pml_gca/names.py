"""Names of losses, generators and recipes, as commands take them. Importing them loads neither torch nor PML."""

LOSSES = (
    *("n_pairs", "contrastive", "triplet", "multi_similarity", "circle"),
    *("supcon", "proxy_anchor", "arcface", "nt_xent"),
)
"""The keys of `pml_gca.losses.NAMED_LOSSES`."""

LOSS_ALONE = "none"
"""The name that stands for no generator."""

GENERATORS = {
    "gca": "GCA-HNG",
    "hardest": "hardest real negatives, classified",
    "hardest_real": "hardest real negatives",
    "constant": "constant λ, no graph",
    "random": "random λ, no graph",
    "hdml": "HDML",
    "hdml_reembed": "HDML, re-embedded",
    "embedding_expansion": "embedding expansion",
    "symmetrical_synthesis": "symmetrical synthesis",
    "mixup": "mixup, after Metrix",
}
"""The keys of `pml_gca.generators.NAMED_GENERATORS`, each with its title in tables and figures."""

RECIPES = tuple(
    f"{backbone}_{dataset}"
    for backbone in ("resnet50", "googlenet", "dino")
    for dataset in ("cub", "cars196", "sop", "inshop")
)
"""The keys of `pml_gca.paper.RECIPES`."""
