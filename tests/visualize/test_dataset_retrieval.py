import pytest
import torch

from pml_gca import visualize


class Pictures:
    """Twelve grey images of six classes. It remembers which ones were read."""

    def __init__(self):
        self.labels = torch.arange(12) % 6
        self.classes = list("abcdef")
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return torch.full((1, 4, 4), index / 12), int(self.labels[index])


def test_queries_are_of_different_classes():
    data = Pictures()
    state = torch.get_rng_state()
    queries = visualize.choose_queries(data, 4, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(data.labels[queries].unique()) == 4
    assert queries.max() < 6  # the first image of each class
    assert torch.equal(visualize.choose_queries(data, 4, seed=1), queries)
    assert not torch.equal(visualize.choose_queries(data, 4, seed=2), queries)
    assert sorted(visualize.choose_queries(data, 100).tolist()) == [0, 1, 2, 3, 4, 5]


def test_only_the_drawn_images_are_read():
    data = Pictures()
    queries = torch.tensor([3, 7])
    found = {"one": torch.tensor([[9, 1], [1, 3]]), "two": torch.tensor([[4, 9], [0, 1]])}
    figure = visualize.plot_dataset_retrieval(data, queries, found, title="unseen")
    assert sorted(data.read) == [0, 1, 3, 4, 7, 9]
    shown = [round(float(ax.images[0].get_array()[0, 0]) * 12) for ax in figure.axes]
    assert shown == [3, 9, 1, 4, 9, 7, 1, 3, 0, 1]
    texts = [text.get_text() for text in figure.texts]
    assert {"unseen", "one", "two", "d", "b"} <= set(texts)  # labels 3 and 1


def test_models_must_retrieve_for_every_query():
    with pytest.raises(ValueError, match="expected 2 rows"):
        visualize.plot_dataset_retrieval(Pictures(), torch.tensor([3, 7]), {"one": torch.tensor([[9, 1]])})
