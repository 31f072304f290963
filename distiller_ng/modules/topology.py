"""Where a model branches (layer 2)."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["BranchPoint"]


class BranchPoint(nn.Module):
    """Runs a module and hands its output to a second network as well, whose result is kept in :attr:`output`.

    ``branched_module`` is the module that was in this place; what follows it in the model sees no difference.
    ``branch_net`` is, for early exits, a small classifier. With ``branched_module`` doubling and ``branch_net``
    negating, an input of 3 returns 6 and leaves -6 in ``output``. The result belongs to the last forward pass and
    holds its graph of gradients; :meth:`clear` lets go of it. Deep copies and saved files do not have it.
    """

    def __init__(self, branched_module: nn.Module, branch_net: nn.Module) -> None:
        super().__init__()
        self.branched_module = branched_module
        self.branch_net = branch_net
        self.output: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What ``branched_module`` returns for these arguments."""
        result = self.branched_module(*args, **kwargs)
        self.output = self.branch_net(result)
        return result

    def clear(self) -> None:
        """Forget the branch's last result."""
        self.output = None

    def __getstate__(self) -> dict[str, Any]:
        """A tensor with a graph cannot be copied, and would be of no use in a copy."""
        return {**self.__dict__, "output": None}
