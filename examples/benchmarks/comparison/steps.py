"""Which rows the tables compare with which, beside the loss alone."""

ALONE = (
    "none_double",
    "none_longer",
    "none_as_hardest",
    "classifier",
    "norm_classifier",
    "crossed_81",
    "norm_crossed_81",
)
LEARNED = ("gca", "gca_counting", "gca_free", "gca_hardest", "gca_hardest_free", "norm_gca")
CONTROLS = (
    *("norm_hardest", "real", "hardest", "constant", "random", "linear_real", "linear_as_graph", "linear_hardest"),
    *("nodes_real", "graph_real", "graph_hardest", "graph_constant", "graph_random"),
)

# From one control to another, and from those with λ = 1 to GCA-HNG with λ learned, by the graph that classifies.
STEPS = (
    ("none", "norm_classifier"),
    ("norm_classifier", "norm_hardest"),
    ("norm_classifier", "norm_crossed_81"),
    ("norm_hardest", "norm_gca"),
    ("norm_classifier", "linear_hardest"),
    ("norm_classifier", "gca"),
    ("none", "none_as_hardest"),
    ("none_as_hardest", "gca"),
    ("none_as_hardest", "graph_hardest"),
    ("none_as_hardest", "linear_hardest"),
    ("none_as_hardest", "symmetrical_synthesis"),
    ("none", "real"),
    ("real", "linear_real"),
    ("linear_real", "nodes_real"),
    ("nodes_real", "graph_real"),
    ("linear_real", "graph_real"),
    ("linear_as_graph", "graph_real"),
    ("linear_hardest", "graph_hardest"),
    ("real", "hardest"),
    ("graph_real", "graph_hardest"),
    ("hardest", "graph_hardest"),
    ("symmetrical_synthesis", "graph_hardest"),
    *(("none_double", name) for name in ("gca", "symmetrical_synthesis", "hardest", "graph_hardest")),
    ("graph_real", "gca_counting"),
    ("graph_random", "gca_counting"),
    ("graph_hardest", "gca_hardest"),
    ("graph_hardest", "gca_hardest_free"),
)
