"""The optimizer groups of a generator without parameters."""

import sys
from collections.abc import Iterator
from typing import Any

OPTIMIZERS = "torch.optim.optimizer"


class NoGroups(list[dict[str, Any]]):
    """An empty list of optimizer groups. An optimizer that is made of it says what to do, instead of torch's message.

    Args:
        name: of the generator without parameters.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterate over nothing.

        Raises:
            ValueError: torch's `Optimizer` asks for its groups.
        """
        if not len(self) and sys._getframe(1).f_globals.get("__name__") == OPTIMIZERS:
            raise ValueError(
                f"there is nothing to optimize: {self.name} has no parameters that may learn, and the wrapped loss has "
                'none either. Leave this optimizer out (PML\'s "metric_loss_optimizer"), or put '
                "*loss.parameter_groups(...) beside the network's group in one optimizer"
            )
        return super().__iter__()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by the name: list's own way would append to it."""
        return NoGroups, (self.name,)
