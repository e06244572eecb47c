"""Which references repeat a sample of the batch."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pml_gca.losses.references import join_references, occurrence


@given(st.lists(st.integers(-3, 3), max_size=12))
def test_occurrence_counts_what_came_before(values):
    expected = [values[:i].count(value) for i, value in enumerate(values)]
    assert occurrence(torch.tensor(values, dtype=torch.long)).tolist() == expected


def slow_join(batch, references):
    """The node of each reference: the next sample equal to it that no reference before it is, else a new one."""
    unused, node_of, nodes = list(range(len(batch))), [], list(batch)
    for reference in references:
        twin = next((i for i in unused if batch[i] == reference), None)
        if twin is None:
            node_of.append(len(nodes))
            nodes.append(reference)
        else:
            node_of.append(twin)
            unused.remove(twin)
    return nodes, node_of


SAMPLES = st.tuples(st.integers(0, 3), st.integers(0, 2))  # an embedding of four, a label of three


@given(st.lists(SAMPLES, max_size=9), st.lists(SAMPLES, max_size=12), st.sampled_from([1, 3, 256]))
def test_references_and_samples_are_matched_one_to_one_in_order(batch, references, part):
    points = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))

    def tensors(samples):
        which = torch.tensor([s[0] for s in samples], dtype=torch.long)
        return points[which], torch.tensor([s[1] for s in samples], dtype=torch.long)

    embeddings, labels = tensors(batch)
    # More references than are compared at a time, none of them equal to a sample.
    filler = torch.arange(300.0)[:: 300 // part][:part].unsqueeze(1).expand(-1, 5)
    ref_emb, ref_labels = (
        torch.cat(pair) for pair in zip(tensors(references), (filler, filler[:, 0].long()), strict=True)
    )
    nodes, node_labels, node_of = join_references(embeddings.requires_grad_(), labels, ref_emb, ref_labels.short())
    expected, expected_of = slow_join(batch, references)
    count = len(expected)
    assert node_of.tolist() == [*expected_of, *range(count, count + len(filler))]
    assert torch.equal(nodes[:count], tensors(expected)[0])
    assert torch.equal(node_labels[:count], tensors(expected)[1])
    assert torch.equal(nodes[node_of], ref_emb)
    assert torch.equal(node_labels[node_of], ref_labels)
    assert torch.equal(nodes[: len(batch)], embeddings)


def test_what_is_no_number_is_in_nobodys_way():
    """Values of a GPU are checked when it has been given its work."""
    z, labels = torch.full((3, 4), float("nan")), torch.zeros(3, dtype=torch.long)
    assert join_references(z, labels, z.clone(), labels)[2].max() < 6
