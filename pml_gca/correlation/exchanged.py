"""How much processes that share the edges of a graph exchange in a training step, from sizes alone."""

from .cost import Sizes


def exchanged_values(sizes: Sizes) -> int:
    r"""Return how many values enter the all-reduces of one training step, forward and backward.

    With N nodes, D channels, K layers and S synthetic negatives,

    .. math:: (5K + 1) N D + S D + 2 K N + 4 D + 2 + (9K + 1) D^2 + (16 K + 2) D

    Of N D values each: in the forward pass the messages of K layers, and the means of J_div; in the pass for the
    embeddings, gradients of the first edges, and two for each layer but the last, of what its edges attend to; in that
    for the parameters, two for each layer, and the gradient of the negatives. N values more go with each of the last
    three. S D are the negatives, 4 D + 2 the sums of BatchNorm and J_div, and the rest are gradients of the parameters
    that edges are computed with.

    Without coefficients one backward pass serves both, and the last layer updates no edges:
    (3K − 1) N D + (K − 1) N + (9K − 8) D² + (16 K − 15) D.

    A ring of W processes sends each value 2(1 − 1/W) times. The numbers are those of the swept form.
    """
    n, d, k = sizes.num_nodes, sizes.embedding_size, sizes.num_layers
    if sizes.num_shares == 1:
        return 0
    to_node, block = d * (d + 1), d * (8 * d + 15)
    passes = 2 if sizes.with_coefficients else 1
    per_layer = n * d + to_node  # messages
    ends = n * (2 * d + 1)
    values = k * per_layer + (sizes.edge_updates + (passes - 1) * sizes.updates_below) * ends
    values += n * d + sizes.edge_updates * block  # of the first edges; of blocks
    if sizes.with_coefficients:
        values += n * d + n * (d + 1) + sizes.num_negatives * d  # J_div; of the negatives; the negatives
        values += 4 * d + 2 + d * (d + 2)  # sums; coefficients and their BatchNorm
    return values
