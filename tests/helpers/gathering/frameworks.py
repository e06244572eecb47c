"""What Lightning, Accelerate and FSDP2 make of the loss, in several processes; and the code of the page about them.

python -m helpers.gathering.frameworks FOLDER 2
"""

import os
import re
import socket
import traceback
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.fsdp
from torch.utils.data import DataLoader, TensorDataset

from helpers.gathering.steps import alone, differences, draw, make_loss, make_trunk, own_rows, same_everywhere
from helpers.gathering.values import LAYOUTS
from helpers.processes import start

PAGE = Path(__file__).parents[3] / "docs" / "several_gpus.md"
LABELS, SIZES = LAYOUTS[2]["uneven"]
NEEDS = {"lightning": "lightning", "lightning, manual": "lightning", "accelerate": "accelerate"}


def blocks():
    """The page's code that has a name."""
    found = re.findall(r"<!-- ([\w, ]+) -->\n```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    has_fsdp = hasattr(torch.distributed.fsdp, "fully_shard")
    return {
        name: code for name, code in found if (find_spec(NEEDS[name]) if name in NEEDS else name != "fsdp" or has_fsdp)
    }


def trained(names):
    """Return the network and the loss of a block of code."""
    module = names.get("module")
    trunk, loss = (module.trunk, module.loss) if module is not None else (names["trunk"], names["loss"])
    return [p.full_tensor() if hasattr(p, "full_tensor") else p for part in (trunk, loss) for p in part.parameters()]


QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


MANUAL = """
trainer = lightning.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, **QUIET)
trainer.fit(module := Manual(), DataLoader(data, batch_size=12))
"""


def to_run(name, code):
    """Return a block's code, changed to write nothing and to let all blocks use one process group."""
    code = code.replace("dist.init_process_group()", "dist.is_initialized() or dist.init_process_group()")
    code = code.replace("dist.destroy_process_group()\n", "").replace("max_epochs=1", "max_epochs=1, **QUIET")
    code = code.replace("trainer.fit(Retrieval()", "trainer.fit(module := Retrieval()")
    return code + MANUAL if name == "lightning, manual" else code


def page(rank, world):
    """Each block runs, and leaves all processes with the same parameters."""
    names = {}
    for name, code in blocks().items():
        torch.manual_seed(rank)
        names = {"QUIET": QUIET} if name != "lightning, manual" else names
        exec(compile(to_run(name, code), f"{PAGE.name}: {name}", "exec"), names)
        yield from same_everywhere(name, trained(names))


def expected():
    return {name: x for name, x in alone(LABELS).items() if name.startswith("gradient")}


def gradients(trunk, loss):
    found = {}
    for part, module in (("trunk", trunk), ("loss", loss)):
        for name, p in module.named_parameters():
            gradient = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
            found[f"gradient of {part}.{name}"] = gradient.clone()
    return found


def in_lightning(rank, world):
    """Gradients of an automatic and of a manual step are those of one process."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self, manual):
            super().__init__()
            self.trunk, self.loss, self.automatic_optimization = make_trunk(), make_loss(), not manual

        def training_step(self, batch, batch_index):
            draw(77, rank)
            value = self.loss(self.trunk(batch[0]), batch[1])
            if self.automatic_optimization:
                return value
            self.manual_backward(value)
            self.optimizers().step()

        def on_before_optimizer_step(self, optimizer):
            self.found = gradients(self.trunk, self.loss)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    x, y = own_rows(LABELS, SIZES, rank)
    for manual in (False, True):
        module = Module(manual)
        trainer = lightning.Trainer(
            accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, use_distributed_sampler=False, **QUIET
        )
        trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=len(y)))
        yield from differences(f"Lightning, manual {manual}", module.found, expected())


def in_accelerate(rank, world):
    """Gradients accumulated over two equal batches are those of one process."""
    from accelerate import Accelerator

    accelerator = Accelerator(gradient_accumulation_steps=2)
    trunk, loss = make_trunk(), make_loss()
    models = accelerator.prepare(trunk, loss)
    levels = {name: value.clone() for name, value in loss.levels.state_dict().items()}
    x, y = own_rows(LABELS, SIZES, rank)
    for _ in range(2):
        loss.levels.load_state_dict(levels)
        with accelerator.accumulate(*models):
            draw(77, rank)
            accelerator.backward(models[1](models[0](x), y))
    yield from differences("Accelerate", gradients(trunk, loss), expected())


def in_fsdp(rank, world):
    """Gradients of a sharded network are those of one process."""
    from torch.distributed.fsdp import fully_shard

    trunk, loss = make_trunk(), make_loss()
    mesh = dist.init_device_mesh("cpu", (world,))
    for layer in (*trunk, trunk):
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    x, y = own_rows(LABELS, SIZES, rank)
    draw(77, rank)
    loss(trunk(x), y).backward()
    yield from differences("FSDP2", gradients(trunk, loss), expected())


def run(rank, world, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    cases = [page]
    cases += [in_lightning] if find_spec("lightning") else []
    cases += [in_accelerate] if find_spec("accelerate") else []
    cases += [in_fsdp] if "fsdp" in blocks() else []
    failures = []
    for case in cases:
        try:
            failures += [f"{case.__name__}: {failure}" for failure in case(rank, world)]
        except BaseException:
            failures.append(f"{case.__name__}: {traceback.format_exc()}")
            break
    return failures


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {  # as torchrun sets them
        "CUDA_VISIBLE_DEVICES": "",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "none",
        "ACCELERATE_USE_CPU": "true",  # as `accelerate launch --cpu` sets it
    }
    start(run)
