"""Agreement with numbers computed by the authors' published implementation (float64, dropout 0)."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import compared
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import DotProductSimilarity

from pml_gca import HardNegativeGenerationLoss
from pml_gca.correlation.edge_list import EdgeList
from pml_gca.correlation.edges import correlation_edges, edge_pairs, to_dense
from pml_gca.generators.interpolation import interpolate, positive_distances
from pml_gca.generators.merging import merging_weights
from pml_gca.generators.planning import plan_candidates
from pml_gca.generators.synthesis import synthesize
from pml_gca.losses.families import SyntheticBatch, n_pairs_synthetic_loss
from pml_gca.losses.levels import synthetic_weight
from pml_gca.paper import PublishedNPairsLoss, load_published_generator
from pml_gca.paper.published_names import published_names

# Relative to the largest value of a tensor.
EXACT = 1e-6
L2_WEIGHT = 0.25 * 3e-3
DISTANCES = 1e-5  # the reference adds 1e-6 inside every norm
FILES = sorted((Path(__file__).parent / "data").glob("*.npz"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture(params=[None, 50], ids=["kept", "recomputed"])
def case(request, path):
    with np.load(path) as file:
        data = {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}

    def section(prefix):
        return {name.removeprefix(prefix): value for name, value in data.items() if name.startswith(prefix)}

    meta = {name: value.item() for name, value in section("meta.").items()}
    generator = load_published_generator(
        section("state."),
        num_heads=meta["num_heads"],
        dropout=0.0,
        edge_chunk_size=request.param,
        **{name: meta[name] for name in ("alpha", "classification_weight", "similarity_weight", "diversity_weight")},
    )
    labels = data["labels"]
    classes = meta["num_sampled_classes"]
    # The reference draws per (sample of the class, rank of the candidate); labels are interleaved by class.
    rank = torch.arange(len(labels)) // classes
    own = labels[:, None] == labels[:classes]
    by_label = labels[:classes].argsort()  # our negatives are ordered by anchor, then label

    def ours(grid):
        """(B, C, ...) anchor x class grid of the reference as our list of negatives."""
        return grid[:, by_label][~own[:, by_label]]

    return SimpleNamespace(
        out=section("out."),
        meta=SimpleNamespace(**meta),
        generator=generator,
        z=data["embeddings"].requires_grad_(),
        labels=labels,
        draws=section("out.")["random_weighting_draws"][rank][:, rank],
        ours=ours,
        names=published_names(meta["num_layers"]),
    )


def close(actual, expected, tolerance):
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected.to(actual), rtol=0, atol=tolerance * scale)


def generate(case):
    return compared.generate(
        case.generator, case.z, case.labels, len(case.labels), case.meta.metric_level, draws=case.draws
    )


def test_all_reference_files_are_there():
    assert [path.stem for path in FILES] == ["first_epoch", "googlenet_like", "small_2layer", "tiny_1layer"]


def test_graph(case):
    close(to_dense(correlation_edges(case.z, EdgeList(len(case.z))), len(case.z)), case.out["edge_init"], EXACT)


def test_logits_coefficients_and_running_statistics(case):
    correlations = case.generator.correlate(case.z, case.labels)
    close(correlations.node_logits, case.out["node_logits"], EXACT)
    close(correlations.dense(), case.out["coefficients"], EXACT)
    norms = {"bottleneck1": case.generator.propagation.edge_norm, "bottleneck2": case.generator.propagation.node_norm}
    for name, norm in norms.items():
        close(norm.running_mean, case.out[f"{name}.running_mean"], EXACT)
        close(norm.running_var, case.out[f"{name}.running_var"], EXACT)
        assert norm.num_batches_tracked == 1


def test_evaluation_mode(case):
    case.generator.correlate(case.z, case.labels)  # the reference took one training pass before
    correlations = case.generator.eval().correlate(case.z, case.labels)
    close(correlations.node_logits, case.out["eval.node_logits"], EXACT)
    close(correlations.dense(), case.out["eval.coefficients"], EXACT)


def test_candidates(case):
    anchors, negatives = (case.labels[:, None] != case.labels).nonzero(as_tuple=True)
    coefficients = case.out["coefficients"][anchors, negatives]
    distance = positive_distances(case.z, plan_candidates(case.labels))
    strength = case.generator.interpolation_strength(case.meta.metric_level)
    candidates = interpolate(case.z[anchors], case.z[negatives], coefficients, distance[anchors], strength)
    close(candidates, case.out["candidates"][anchors, negatives], DISTANCES)


@pytest.mark.parametrize("max_edges", [7, 100_000])
def test_random_weighting_with_the_given_draws(case, max_edges):
    plan = plan_candidates(case.labels)
    coefficients = case.out["coefficients"][tuple(edge_pairs(len(case.z)))]
    strength = case.generator.interpolation_strength(case.meta.metric_level)
    weights = merging_weights(case.draws, plan)
    for merged in synthesize(case.z, coefficients, plan, weights, strength, max_edges):
        close(merged, case.ours(case.out["synthetic"]), DISTANCES)
    close(generate(case).embeddings, case.ours(case.out["synthetic"]), DISTANCES)


def test_generator_terms(case):
    case.generator.start_collecting_stats()
    terms = generate(case).objectives
    close(terms["node_classification_loss"], case.out["node_classification_loss"], EXACT)
    close(terms["generation_loss"], case.out["generator_loss"], DISTANCES)
    close(terms["auxiliary_classification_loss"], 10 * case.out["embedding_classification_loss"], EXACT)
    for name in ("generated_classification_loss", "similarity_loss", "diversity_loss"):
        close(torch.tensor(getattr(case.generator, name), dtype=torch.float64), case.out[name], DISTANCES)


def test_published_terms_average_over_the_whole_grid(case):
    """There own-class cells of the anchor x class grid count: in J_soft by their values, in J_sim as 0."""
    labels, grid = case.labels, case.out["synthetic"]
    classes = labels[: grid.shape[1]]
    classifier = case.generator.objective.classifier
    logits = torch.nn.functional.linear(grid, classifier.weight, classifier.bias).flatten(0, 1)
    soft = torch.nn.functional.cross_entropy(logits, classes.repeat(len(grid)))
    close(soft, case.out["published.generated_classification_loss"], EXACT)
    distances = 1 - torch.cosine_similarity(case.z[:, None], grid, dim=2)
    negatives = labels[:, None] != classes
    close((distances * negatives).mean(), case.out["published.similarity_loss"], EXACT)
    ours, share = case.out["similarity_loss"], 1 - 1 / len(classes)
    close(share * ours, case.out["published.similarity_loss"], DISTANCES)


@pytest.mark.parametrize(("classes", "samples"), [(27, 3), (40, 2), (4, 2), (5, 3)])
def test_the_published_mask_of_the_similarity_hits_other_cells_than_it_is_for(classes, samples):
    """It is to hide cells (a, a mod C), an anchor's own class, and hides (a, a div M)."""
    batch = classes * samples
    rows, columns = torch.eye(classes).repeat(1, samples).nonzero(as_tuple=True)  # class c, and the samples of it
    hidden = torch.zeros(batch * classes, dtype=torch.bool)
    hidden[rows * batch + columns] = True  # as if a row of the grid were a class; it is an anchor
    hidden = hidden.view(batch, classes)
    anchors = torch.arange(batch)
    assert torch.equal(hidden.nonzero(), torch.stack([anchors, anchors // samples], dim=1))
    own = anchors[:, None] % classes == torch.arange(classes)
    counts = int((own & ~hidden).sum()), int((~own & hidden).sum())  # own cells that stay, negatives that go
    assert counts == {27: (78, 78), 40: (78, 78), 4: (6, 6), 5: (12, 12)}[classes]


def test_gradient_of_node_classification(case):
    generate(case).objectives["node_classification_loss"].backward()
    close(case.z.grad, case.out["grad_z.node_classification_loss"], EXACT)
    check_parameter_gradients(case, "node_classification_loss", EXACT)


def test_gradient_of_the_generator_loss(case):
    generate(case).objectives["generation_loss"].backward()
    assert case.z.grad is None or not case.z.grad.any()
    check_parameter_gradients(case, "generator_loss", DISTANCES)


def check_parameter_gradients(case, loss, tolerance):
    """Norms of the gradients of all parameters that the reference lists; those of unused ones are 0 there."""
    parameters = dict(case.generator.named_parameters())
    ours = {theirs.removeprefix("gnn."): name for name, theirs in case.names.items()}
    prefix = f"gradnorm.{loss}."
    expected = {name.removeprefix(prefix): norm for name, norm in case.out.items() if name.startswith(prefix)}
    assert len(expected) >= 30
    for theirs, norm in expected.items():
        if theirs not in ours:
            assert "update_node" in theirs
            assert norm == 0
            continue
        gradient = parameters[ours[theirs]].grad
        actual = torch.zeros_like(norm) if gradient is None else torch.linalg.vector_norm(gradient)
        torch.testing.assert_close(actual, norm, rtol=tolerance, atol=1e-12, msg=theirs)


def test_real_n_pairs_loss(case):
    loss = PublishedNPairsLoss(case.meta.samples_per_class)
    loss.embedding_regularizer = None
    value = loss(case.z, case.labels)
    close(value, case.out["n_pairs_loss"], EXACT)
    (gradient,) = torch.autograd.grad(value, case.z)
    close(gradient, case.out["grad_z.n_pairs_loss"], EXACT)


def test_real_n_pairs_loss_with_l2(case):
    value = PublishedNPairsLoss(case.meta.samples_per_class)(case.z, case.labels)
    close(value, case.out["n_pairs_loss_with_l2"], EXACT)


def test_synthetic_n_pairs_loss_with_l2(case):
    """There it averages over the anchor x class grid, whose own-class cells hold the positives."""
    negatives, positives = generate(case).embeddings, case.z[plan_candidates(case.labels).positives]
    squares = torch.cat([negatives, positives]).square().sum(dim=1)
    value = case.out["synthetic_n_pairs_loss"] + L2_WEIGHT * (case.z.square().sum(dim=1).mean() + squares.mean())
    close(value, case.out["synthetic_n_pairs_loss_with_l2"], DISTANCES)


def test_synthetic_n_pairs_loss(case):
    loss = losses.NPairsLoss(distance=DotProductSimilarity(normalize_embeddings=False))
    value = n_pairs_synthetic_loss(loss, SyntheticBatch(case.z, case.labels, case.z, case.labels, generate(case)))
    close(value, case.out["synthetic_n_pairs_loss"], DISTANCES)
    (gradient,) = torch.autograd.grad(value, case.z)
    close(gradient, case.out["grad_z.synthetic_n_pairs_loss"], DISTANCES)


def test_synthetic_weight(case):
    loss = HardNegativeGenerationLoss(losses.NPairsLoss(), case.generator, beta=case.meta.beta)
    weight = synthetic_weight(torch.tensor(case.meta.generator_level, dtype=torch.float64), loss.synthetic_beta)
    close(weight, case.out["synthetic_weight"], EXACT)


def test_published_file_round_trip(case, tmp_path):
    state = case.generator.state_dict()
    published = {theirs: state[ours] for ours, theirs in case.names.items()}
    published["feature_extractor.backbone.conv1.weight"] = torch.zeros(3)
    torch.save(published, tmp_path / "published.pth")
    restored = load_published_generator(tmp_path / "published.pth", num_heads=case.meta.num_heads)
    assert all(torch.equal(value, restored.state_dict()[name]) for name, value in state.items())
