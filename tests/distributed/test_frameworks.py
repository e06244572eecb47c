"""Lightning, Accelerate and FSDP2, where they are installed, and the code of the page about them."""

import re

from helpers.gathering.frameworks import PAGE, blocks
from helpers.processes import launch


def test_frameworks_train_as_one_process_does(tmp_path):
    for rank, failures in enumerate(launch("gathering.frameworks", tmp_path, 2)[2]):
        assert not failures, f"rank {rank}:\n" + "\n".join(failures)


def test_every_block_of_code_is_run():
    """Those without a name run in one process."""
    text = PAGE.read_text()
    named = re.findall(r"<!-- ([\w, ]+) -->\n```python", text)
    assert named == ["torchrun", "lightning", "lightning, manual", "accelerate", "fsdp"]
    assert set(blocks()) <= set(named)
    for code in re.findall(r"(?<!-->)\n```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(code, PAGE.name, "exec"), {})
