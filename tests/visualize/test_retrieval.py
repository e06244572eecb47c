import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_gca import visualize
from pml_gca.visualize import nearest_neighbours, plot_retrieval

pytest.importorskip("matplotlib")
from matplotlib.colors import to_hex
from matplotlib.figure import Figure


def scene(n=12, channels=3, height=10, width=14):
    g = torch.Generator().manual_seed(0)
    images = torch.rand(n, channels, height, width, generator=g)
    return images, torch.arange(n) % 3, torch.tensor([0, 4])


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), n=st.integers(2, 20), data=st.data())
def test_nearest_neighbours_equal_a_loop(seed, n, data):
    k = data.draw(st.integers(1, n - 1))
    queries = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5))
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 5
    found = nearest_neighbours(x, torch.tensor(queries), k)
    assert found.dtype == torch.int64
    assert found.shape == (len(queries), k)
    for row, q in zip(found.tolist(), queries, strict=True):
        cosine = {
            j: sum(a * b for a, b in zip(x[q].tolist(), x[j].tolist(), strict=True)) / float(x[j].norm())
            for j in range(n)
            if j != q
        }
        assert row == sorted(cosine, key=cosine.__getitem__, reverse=True)[:k]


def test_nearest_neighbours_ties_precision_and_copies():
    same = torch.ones(5, 2)
    # The query has exact copies before and after it; it is left out all the same, the lower index first.
    assert nearest_neighbours(same, torch.tensor([2]), 4).tolist() == [[0, 1, 3, 4]]
    x = torch.tensor([[1.0, 0.0], [1.0, 0.02], [1.0, 0.01]], requires_grad=True)
    assert nearest_neighbours(x.half(), torch.tensor([0]), 2).tolist() == [[2, 1]]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"embeddings": torch.ones(4)}, "embeddings"),
        ({"embeddings": torch.ones(4, 2, dtype=torch.long)}, "embeddings"),
        ({"embeddings": torch.full((4, 2), torch.nan)}, "embeddings must be finite, got 8 NaN and 0 infinite of 8"),
        ({"queries": torch.tensor([4])}, "queries"),
        ({"queries": torch.tensor([-1])}, "queries"),
        ({"queries": torch.tensor([0.0])}, "queries"),
        ({"queries": torch.tensor([], dtype=torch.long)}, "queries"),
        ({"queries": [0]}, "queries"),
        ({"k": 0}, "k is"),
        ({"k": 4}, "k is"),
        ({"k": True}, "k is"),
        ({"k": 1.0}, "k is"),
    ],
)
def test_nearest_neighbours_bad_input(change, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        nearest_neighbours(**{"embeddings": torch.eye(4), "queries": torch.tensor([1]), "k": 2, **change})


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1.0, 1e25, 1e37])
def test_nearest_neighbours_at_any_scale(scale):
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)).double()
    expected = nearest_neighbours(x, torch.arange(30), 3)
    found = nearest_neighbours((x * scale).float(), torch.arange(30, dtype=torch.int32), np.int64(3))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_retrieval_axes_images_and_frames(channels, tmp_path):
    images, labels, queries = scene(channels=channels)
    neighbours = {
        "baseline": torch.tensor([[3, 1, 2, 6, 5], [1, 7, 0, 5, 2]]),
        "GCA-HNG": torch.tensor([[3, 6, 9, 1], [7, 1, 10, 3]]),
    }
    figure = plot_retrieval(images, labels, queries, neighbours, title="Nearest images")
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 2 * (1 + 2 * 4)
    shown = torch.cat([queries[:, None], neighbours["baseline"][:, :4], neighbours["GCA-HNG"]], 1)
    for ax, (row, column) in zip(figure.axes, ((r, c) for r in range(2) for c in range(9)), strict=True):
        index = int(shown[row, column])
        picture = torch.as_tensor(ax.images[0].get_array().data)
        expected = images[index, 0] if channels == 1 else images[index].permute(1, 2, 0)
        assert torch.equal(picture, expected)
        frames = {to_hex(spine.get_edgecolor()) for spine in ax.spines.values()}
        same = labels[index] == labels[queries[row]]
        green, red = visualize.SAME_CLASS, visualize.OTHER_CLASS
        assert frames == ({"#404040"} if column == 0 else {green} if same else {red})
        box = ax.get_window_extent()  # the cell has the picture's shape
        assert box.width / box.height == pytest.approx(14 / 10, rel=1e-6)
    texts = [text.get_text() for text in figure.texts]
    assert texts.count("baseline") == texts.count("GCA-HNG") == texts.count("query") == 1
    assert "class 0" in texts
    assert "class 1" in texts
    figure.savefig(tmp_path / "retrieval.png")
    assert (tmp_path / "retrieval.png").stat().st_size > 1000


def test_retrieval_texts_stay_inside_and_apart():
    images, labels, queries = scene()
    names = {0: "Black-footed Albatross of the north", 1: "Indigo Bunting"}
    model = {"a rather long name for a block of one column": torch.tensor([[3], [1]])}
    figure = plot_retrieval(images, labels, queries, model, top=1, class_names=names, title="Title")
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.texts] + [ax.get_window_extent() for ax in figure.axes]
    boxes.append(figure.legends[0].get_window_extent())
    for i, a in enumerate(boxes):
        assert a.x0 >= 0
        assert a.y0 >= 0
        assert a.x1 <= figure.bbox.x1
        assert a.y1 <= figure.bbox.y1
        assert not any(a.overlaps(b) for b in boxes[i + 1 :])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"images": torch.rand(12, 2, 4, 4)}, "images"),
        ({"images": torch.rand(12, 4, 4)}, "images"),
        ({"images": torch.zeros(12, 3, 4, 4, dtype=torch.uint8)}, "images"),
        ({"images": torch.randn(12, 3, 40, 40)}, "images"),
        ({"images": torch.full((12, 3, 4, 4), torch.nan)}, "images"),
        ({"labels": torch.zeros(11, dtype=torch.long)}, "labels"),
        ({"labels": torch.zeros(12)}, "labels"),
        ({"queries": torch.tensor([0, 12])}, "queries"),
        ({"neighbours": {}}, "neighbours"),
        ({"neighbours": torch.zeros(2, 4, dtype=torch.long)}, "neighbours"),
        ({"neighbours": {"a": torch.zeros(3, 4, dtype=torch.long)}}, "neighbours"),
        ({"neighbours": {"a": torch.zeros(2, 3, dtype=torch.long)}}, "neighbours"),
        ({"neighbours": {"a": torch.full((2, 4), -1)}}, "neighbours"),
        ({"top": 0}, "top"),
        ({"top": True}, "top"),
        ({"class_names": {0: "a"}}, "class_names"),
        ({"class_names": ["a"]}, "class_names"),
    ],
)
def test_retrieval_bad_input(change, name):
    images, labels, queries = scene()
    good = {"images": images, "labels": labels, "queries": queries}
    good["neighbours"] = {"a": torch.zeros(2, 4, dtype=torch.long)}
    with pytest.raises(ValueError, match=f"^{name}"):
        plot_retrieval(**{**good, **change})


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


FOUND = torch.tensor([[9, 1], [1, 3]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"neighbours": {"one": FOUND[:1]}},
            r"neighbours\['one'\] has shape \(1, 2\); expected \(2, 2\): a row for each",
        ),
        ({"neighbours": {"one": FOUND, "two": FOUND[:, :1]}}, r"neighbours\['two'\] has shape \(2, 1\).* same k"),
        ({"neighbours": {}}, "neighbours must map at least one model's name to indices"),
        ({"neighbours": [FOUND]}, "neighbours must map at least one model's name to indices"),
        ({"neighbours": {"one": FOUND + 9}}, "expected indices from 0 to 11"),
        ({"queries": torch.tensor([3, 12])}, "queries holds values from 3 to 12; expected indices from 0 to 11"),
        ({"queries": torch.tensor([-1, 3])}, "queries holds values from -1 to 3"),
        ({"queries": [3, 7]}, "queries is of type list; expected a tensor"),
    ],
)
def test_bad_queries_and_neighbours_of_a_data_set_are_named(change, message):
    data = Pictures()
    given = {"queries": torch.tensor([3, 7]), "neighbours": {"one": FOUND}, **change}
    with pytest.raises(ValueError, match=message):
        visualize.plot_dataset_retrieval(data, **given)
    assert data.read == []


def test_classes_without_images_are_no_queries():
    data = Pictures()
    data.classes = list("abcdefgh")  # none of g and h
    assert sorted(visualize.choose_queries(data, 8).tolist()) == [0, 1, 2, 3, 4, 5]
    assert all(len(visualize.choose_queries(data, 3, seed=seed)) == 3 for seed in range(9))
    for count in (0, -1):
        with pytest.raises(ValueError, match="count must be at least 1"):
            visualize.choose_queries(data, count)
    data.labels = data.labels[:0]
    with pytest.raises(ValueError, match="dataset has no images"):
        visualize.choose_queries(data, 1)
