"""The edge side of the propagation, tile by tile, with gradients written out.

Each function here computes what its plain form in `correlation.blocks` and `correlation.propagation` says, and is
tested against it. It goes over the edges in tiles, keeps one (E, D) tensor a layer - the edges before their post-norm -
and computes anew, in the backward sweep, what costs no matrix product. The hidden activations of the edge MLP, four
times as wide, are kept where memory allows, and else computed anew as well. Statistics, norms and sums are in float32
or wider; matrix products are in the dtype of autocast or of the parameters. Hooks on the linear layers inside are not
called. A backward pass that is to be differentiated itself (``create_graph=True``) takes plain forms, which keep
everything.
"""

from .propagate import propagate

__all__ = ["propagate"]
