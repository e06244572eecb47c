"""The paper's section 3: a graph over the batch, and the channel-wise correlations that it learns."""
