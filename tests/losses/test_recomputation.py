"""The loss under checkpointing, hooks of saved tensors, and functional calls with other parameters."""

import copy

import pytest
import torch
from helpers.compared import GENERATORS, NUM_CLASSES, SIZE, random_rows
from pytorch_metric_learning import losses
from torch.utils.checkpoint import checkpoint

from pml_gca import GlobalCorrelationGenerator, GlobalCorrelationMiner, HardNegativeGenerationLoss
from pml_gca.generators import ClassifiedGenerator, HardestNegativeGenerator

LABELS = torch.tensor([2, 5, 2, 0, 5, 2, 1, 1, 8])
EVERY = {
    **GENERATORS,
    "global correlation": lambda: GlobalCorrelationGenerator(NUM_CLASSES, SIZE),
    "global correlation, in parts": lambda: GlobalCorrelationGenerator(NUM_CLASSES, SIZE, edge_chunk_size=16),
    "real negatives": lambda: ClassifiedGenerator(HardestNegativeGenerator(NUM_CLASSES, SIZE)),
}
every = pytest.mark.parametrize("name", EVERY)
both_forms = pytest.mark.parametrize("use_reentrant", [False, True])


def make(name="global correlation"):
    torch.manual_seed(0)
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), EVERY[name]().double(), collect_stats=True)
    loss.levels.metric.value.fill_(3.0)
    loss.levels.generator.value.fill_(14.0)
    return loss


def step(loss, call=None):
    """Return value, gradients, buffers and records of a step; `call` computes the loss of embeddings."""
    z, before = random_rows(len(LABELS)), [p.detach().clone() for p in loss.parameters()]
    torch.manual_seed(1)
    value = (call or loss)(z, LABELS)
    value.backward()
    torch.testing.assert_close(list(loss.parameters()), before, rtol=0, atol=0)
    gradients = [p.grad for p in loss.parameters()]
    return [value.detach(), z.grad, *gradients, *loss.buffers(), loss.metric_loss, loss.synthetic_loss]


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@every
@both_forms
def test_checkpointing_is_refused_and_changes_nothing(name, use_reentrant):
    loss = make(name)
    twin = copy.deepcopy(loss)

    def inside(z, y):
        return 2 * loss(3 * z, y)

    with pytest.raises(RuntimeError, match=r"^HardNegativeGenerationLoss was called inside .* loss\(checkpoint\(model"):
        checkpoint(inside, random_rows(len(LABELS)), LABELS, use_reentrant=use_reentrant)
    assert_equal(step(loss), step(twin))


@both_forms
@pytest.mark.parametrize("num_layers", [0, 1])
def test_a_checkpointed_propagation_is_refused(use_reentrant, num_layers):
    loss = make()
    loss.generator = GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=num_layers).double()
    plain = loss.generator.propagation.forward
    loss.generator.propagation.forward = lambda *args: checkpoint(plain, *args, use_reentrant=use_reentrant)
    before = copy.deepcopy(loss.state_dict())
    with pytest.raises(RuntimeError, match=r"propagation was called inside .* edge_chunk_size$"):
        loss(random_rows(len(LABELS)), LABELS)
    assert_equal(dict(loss.state_dict()), dict(before))


def test_recomputation_by_another_library_is_refused():
    loss = make()

    class Anew(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            with torch.no_grad():
                return loss(z, LABELS)

        @staticmethod
        def backward(ctx, grad):
            with torch.enable_grad():
                return torch.autograd.grad(loss(ctx.saved_tensors[0].detach().requires_grad_(), LABELS), [])[0]

    before = copy.deepcopy(loss.state_dict())
    with pytest.raises(RuntimeError, match="HardNegativeGenerationLoss was called inside"):
        Anew.apply(random_rows(len(LABELS))).backward()
    assert_equal(dict(loss.state_dict()), dict(before))


@both_forms
def test_checkpointing_around_the_network_works(use_reentrant):
    """In training the network; in evaluation also the loss, which is then the wrapped one, and the miner."""
    loss, twin = make(), make()
    net = torch.nn.Sequential(torch.nn.Linear(SIZE, SIZE), torch.nn.Tanh()).double()
    found = step(loss, lambda z, y: loss(checkpoint(net, z, use_reentrant=use_reentrant), y))
    assert_equal(found, step(twin, lambda z, y: twin(net(z), y)))
    loss.eval()
    z = random_rows(len(LABELS))
    miner = GlobalCorrelationMiner(loss.generator)
    values = []
    for call in (lambda f, *args: checkpoint(f, *args, use_reentrant=use_reentrant), lambda f, *args: f(*args)):
        value = call(lambda z, y: loss(z, y, miner(z, y)), z, LABELS)
        values.append([value.detach(), torch.autograd.grad(value, z, retain_graph=True) if not use_reentrant else None])
    assert_equal(*values)


def to_numpy():
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x.numpy().copy(), torch.from_numpy)


@every
@pytest.mark.parametrize("keep", [torch.autograd.graph.save_on_cpu, to_numpy])
def test_saved_tensors_hooks_keep_the_gradients(name, keep):
    loss, twin = make(name), make(name)

    def kept(z, y):
        with keep():
            return loss(z, y)

    torch.testing.assert_close(step(loss, kept), step(twin))  # memory alignment affects how products are rounded


@every
def test_each_gradient_pass_unpacks_a_saved_tensor_once(name):
    packed, unpacked = [], []

    def pack(x):
        packed.append(len(packed))
        return packed[-1], x

    def unpack(kept):
        unpacked.append(kept[0])
        return kept[1]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        step(make(name))
    assert set(unpacked) <= set(packed)
    # Node classification passes its gradient early, the other terms pass theirs later.
    assert max(map(unpacked.count, packed), default=0) <= 2


@every
def test_a_functional_call_with_other_parameters(name):
    loss, twin = make(name), make(name)
    with torch.no_grad():
        others = {key: p + 0.1 for key, p in loss.named_parameters()}
        for p in twin.parameters():
            p.add_(0.1)
    for p in others.values():
        p.requires_grad_()
    found = step(loss, lambda z, y: torch.func.functional_call(loss, others, (z, y)))
    expected = step(twin)
    count = len(others)
    assert found[2 : 2 + count] == [None] * count  # its own parameters were not used
    assert_equal([*found[:2], *(p.grad for p in others.values()), *found[2 + count :]], expected)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.func.vmap])
def test_function_transforms_are_refused(transform):
    loss, rows = make(), random_rows(len(LABELS)).detach()
    rows = rows[None] if transform is torch.func.vmap else rows
    with pytest.raises(TypeError, match=r"embeddings cannot be read inside .* take gradients by backward"):
        transform(lambda z: loss(z, LABELS))(rows)
