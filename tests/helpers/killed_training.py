"""Kill trainings and ranks, and keep what is left.

python -m helpers.killed_training FOLDER [KILLS]: without KILLS, as the tests do; else at so many random moments.
"""

import io
import json
import os
import random
import signal
import sys
import time
import traceback
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from helpers import distributed_training
from helpers.gathering.steps import make_loss, make_rows, make_trunk
from pml_gca.utils import runs

EPOCHS = 3
TIMEOUT = 3.0  # seconds, of the process group


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name, call, end):
    """Do `end(*args)` in place of the `call`-th call of a function."""
    function, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(0)
        return end(*args) if len(calls) == call else function(*args, **kwargs)

    setattr(owner, name, counted)


def die_in_save(content, path):
    """Write half a checkpoint, and die."""
    whole = io.BytesIO()
    torch.serialization.save(content, whole)
    path.write_bytes(whole.getvalue()[: whole.tell() // 2])
    die()


MOMENTS = {
    "between two optimizers": lambda: before(torch.optim.AdamW, "step", 8, lambda *_: die()),
    "in the checkpoint of an epoch": lambda: before(torch, "save", 1, die_in_save),
    "before a checkpoint takes its place": lambda: before(os, "replace", 3, lambda *_: die()),
    "before the result": lambda: before(runs, "write_json", 2, lambda *_: die()),
}


def fork(function, *args):
    """Call a function in a new process, without its prints; return its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with redirect_stdout(io.StringIO()):
            function(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def train(folder, *arm):
    for each in arm:
        each()
    distributed_training.train(folder, EPOCHS, "--resume")


def signal_of(pid):
    """Return the signal that ended a process; 0 if it ended by itself, without error."""
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def kill_at_chosen_moments(folder):
    """Return which signal ended each training; the last has no reason to end."""
    ends = {name: signal_of(fork(train, folder, arm)) for name, arm in MOMENTS.items()}
    return {**ends, "none": signal_of(fork(train, folder))}


def kill_at_random_moments(folder, count, seconds):
    """Kill `count` trainings; print after which epoch. Start another whenever one ends. Return how many there were.

    Args:
        folder: of the trainings, each in a subfolder.
        count: of kills.
        seconds: that an unbroken training takes.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    kills, number, draws = 0, 0, random.Random(0)
    while kills < count:
        place = folder / str(number)
        pid = fork(train, place)
        signal.sigtimedwait([signal.SIGCHLD], draws.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)  # an ended process can still be waited for
        killed = signal_of(pid) == signal.SIGKILL
        signal.sigtimedwait([signal.SIGCHLD], 0)  # forget this end
        if killed:
            kills += 1
            files = sorted(path.name for path in place.rglob("*.*"))
            print(f"training {number}: killed with {files}", flush=True)
        else:
            number += 1
    assert signal_of(fork(train, folder / str(number))) == 0
    return number + 1


def lose_a_rank(rank, folder, ends):
    """Train; the last rank dies, or stops without a word. Write what the other one sees, and after how long."""
    address = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT))
    trunk, loss = make_trunk(), make_loss()
    x, y = make_rows([0, 1, 0, 1], seed=rank)
    loss(trunk(x), y).backward()
    before_end = {name: value.clone() for name, value in loss.state_dict().items()}
    if rank:
        die() if ends else signal.pause()
    began, error = time.monotonic(), None
    try:
        loss(trunk(x), y)
    except RuntimeError as raised:
        error = str(raised)
    unchanged = all(torch.equal(value, before_end[name]) for name, value in loss.state_dict().items())
    found = {"error": error, "seconds": time.monotonic() - began, "unchanged": unchanged}
    (folder / "found.json").write_text(json.dumps(found))


def ranks_lost(folder):
    """Return what is seen of a rank that dies, and of one that stops."""
    found = {}
    for name, ends in (("killed", True), ("stopped", False)):
        place = folder / f"rank_{name}"
        place.mkdir()
        pids = [fork(lose_a_rank, rank, place, ends) for rank in range(2)]
        assert signal_of(pids[0]) == 0
        if not ends:
            os.kill(pids[1], signal.SIGKILL)
        assert signal_of(pids[1]) == signal.SIGKILL
        found[name] = json.loads((place / "found.json").read_text())
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    began = time.monotonic()
    assert signal_of(fork(train, folder / "unbroken")) == 0
    if len(sys.argv) > 2:
        print(kill_at_random_moments(folder, int(sys.argv[2]), time.monotonic() - began), "trainings")
    else:
        found = {"ends": kill_at_chosen_moments(folder / "killed"), "ranks": ranks_lost(folder)}
        (folder / "found.json").write_text(json.dumps(found))
