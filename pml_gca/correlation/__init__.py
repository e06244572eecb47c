"""Section 3 of the paper: a graph over the batch, and the channel-wise correlations that it learns.

Peng et al., "Globally Correlation-Aware Hard Negative Generation", IJCV 2024, https://arxiv.org/abs/2411.13145

Where each equation stands, with norm(x) = LayerNorm(GELU(x)):

- e⁰_ij = x̂_i ⊙ x̂_j: `edges.correlation_edges`
- w_ij = exp(s_ij) / (1 + Σ_j exp(s_ij)) over negatives j: `attention.negative_attention`
- a_i = norm(h_i + Linear(Σ_j w_ij v_j)): `blocks.NodeBlock.attend`
- Σ_j GELU(Linear(e_ij)): `blocks.NodeBlock.forward`
- b_i = norm(a_i + messages), h_i ← norm(b_i + FF(b_i)): `blocks.NodeBlock.update`
- attention of an edge to its two ends: `blocks.EdgeBlock.attend`
- t_ij = norm(attended_ij + e_ij), e_ij ← norm(MLP(t_ij) + t_ij): `blocks.EdgeBlock.forward`
- K layers, node logits, λ_ij = sigmoid(Linear(BatchNorm(e_ij))): `propagation.CorrelationPropagation.forward_plain`
- r_ij and ẑ_ij: `pml_gca.generators.interpolation.interpolate`; for a whole batch, `pml_gca.generators.synthesis`
- J_soft and J_sim: `objective.frozen_classification_loss` and `objective.similarity_loss`
- J_div: `diversity.diversity_loss`
"""
