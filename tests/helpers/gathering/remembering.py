"""A loss with a memory: one queue for all processes."""

import torch
from torch.nn.parallel import DistributedDataParallel

from helpers.gathering.steps import (
    average,
    differences,
    draw,
    kept,
    make_loss,
    make_rows,
    make_trunk,
    own_rows,
    same_everywhere,
)

LABELS = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]
SIZES = {2: [7, 4], 3: [3, 0, 8]}
WRAPPED = ("MultiSimilarityLoss", "TripletMarginLoss, drawn", "NPairsLoss", "ProxyAnchorLoss")


def steps(rank, sizes, name, gather, **options):
    """Three batches, the queue wrapping around; what the last one leaves, with the memory."""
    trunk, loss = make_trunk(), make_loss(name, gather=gather, memory_size=25, **options)
    model = DistributedDataParallel(loss) if gather and name == WRAPPED[0] else loss
    values = {}
    for seed in range(3):
        x, y = own_rows(LABELS, sizes, rank, seed) if gather else make_rows(LABELS, seed)
        draw(seed, rank, gather)
        trunk.zero_grad()
        loss.zero_grad()
        value = model(trunk(x), y)
        value.backward()
        values[f"value {seed}"] = value.detach()
    if gather:
        average(trunk.parameters())
    return kept(value, trunk, loss) | values


def memory(rank, world):
    """The global batch enters in every process, as in one process."""
    for name in WRAPPED:
        expected = steps(rank, None, name, gather=False)
        for shard_edges in (False, True)[: 2 if name == WRAPPED[0] else 1]:
            found, title = steps(rank, SIZES[world], name, True, shard_edges=shard_edges), f"{name}, {shard_edges}"
            yield from differences(title, found, expected)
            yield from same_everywhere(title, [x for key, x in found.items() if "memory" in key])
        if not any("memory.queue.embeddings" in key for key in found):
            yield "there is no memory"
    refused = make_loss(memory_size=5)
    x, y = own_rows(LABELS, SIZES[world], rank)
    rows, references = make_trunk()(x), (make_trunk()(x), y.clone()) if rank == 0 else ()
    try:
        refused(rows, y, None, *references)
    except ValueError as error:
        if "rank 0" not in str(error) and rank != 0:
            yield f"not told by whom: {error}"
    else:
        yield "references in one process were not refused"
    try:
        make_loss(memory_size=5 + rank)(rows, y)
    except ValueError as error:
        if "with a memory of 5" not in str(error) or "with a memory of 6" not in str(error):
            yield f"not told what differs: {error}"
    else:
        yield "memories of other sizes were not refused"


def not_a_number(rank, world):
    """A NaN in the last process, in the middle of a training: all are told, and go on as if it had not been there."""
    reason = f"rank {world - 1}: embeddings must be finite, got {8 * SIZES[world][-1]} NaN"
    for shard_edges in (False, True):
        found = []
        for has_fault in (False, True):
            trunk, loss = make_trunk(), make_loss(memory_size=25, shard_edges=shard_edges)
            optimizer = torch.optim.AdamW(loss.parameters(), lr=1e-3)
            for seed in range(4):
                rows, y = own_rows(LABELS, SIZES[world], rank, seed)
                rows = trunk(rows).detach()
                draw(seed, rank)
                if has_fault and seed == 2:
                    spoilt = rows * float("nan") if rank == world - 1 else rows
                    before = {name: value.clone() for name, value in loss.state_dict().items()}
                    try:
                        loss(spoilt.requires_grad_(), y)
                    except ValueError as error:
                        if reason not in str(error):
                            yield f"not told what: {error}"
                    else:
                        yield "NaN was not refused"
                    yield from differences("state after NaN", loss.state_dict(), before, rtol=0)
                optimizer.zero_grad()
                loss(rows.requires_grad_(), y).backward()
                optimizer.step()
            found.append(loss.state_dict())
        yield from differences(f"NaN in between, {shard_edges}", *found, rtol=0)


CASES = (memory, not_a_number)
