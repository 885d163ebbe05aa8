"""The memory of a policy: recurrent cells between trunks and heads.

The *memory state* of a column is one row of S numbers: the states of all cells, side by side. It is
0 at the beginning of an episode. Actors carry it from one env step to the next. The slot holds it
as it was before row 0, where the learner begins.

In shapes, N is the number of rows, T the number of env steps of a sequence and n the number of
sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from htsrl_cli.config.kinds import NetworkConfig

_CELLS: dict[str, type[nn.LSTMCell] | type[nn.GRUCell]] = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}


class Memory(nn.Module):
    """A recurrent cell behind each trunk, in float32.

    If policy and value have separate trunks, each of them has a cell of its own, as in Sample
    Factory and by default in sb3-contrib's RecurrentPPO.

    Args:
        kind: `lstm` (Hochreiter and Schmidhuber, 1997) or `gru` (Cho et al., 2014).
        size: number of units of a cell.
        nums_features: number of features of each trunk.

    Attributes:
        size: number of units of a cell, which is the number of features for the heads.
        width: S, the numbers of a memory state: for each cell `size` (GRU) or 2 * `size` (LSTM).
    """

    def __init__(self, kind: str, size: int, nums_features: Sequence[int]) -> None:
        super().__init__()
        self.cells = nn.ModuleList(_CELLS[kind](number, size) for number in nums_features)
        self.size = size
        self.width = len(nums_features) * size * (2 if kind == "lstm" else 1)

    def forward(self, features: Sequence[Tensor], states: Tensor) -> tuple[list[Tensor], Tensor]:
        """Takes one env step.

        Args:
            features: the features of each trunk, float32 [N, num_features].
            states: memory states before the env step, float32 [N, S].

        Returns:
            The output of each cell, float32 [N, size]; and the states after it, float32 [N, S].
        """
        outputs: list[Tensor] = []
        parts: list[Tensor] = []
        of_cells = states.chunk(len(self.cells), dim=1)
        for cell, x, own in zip(self.cells, features, of_cells, strict=True):
            if isinstance(cell, nn.LSTMCell):
                hidden, carried = cell(x, own.chunk(2, dim=1))
                parts += [hidden, carried]
            else:
                hidden = cell(x, own)
                parts.append(hidden)
            outputs.append(hidden)
        return outputs, torch.cat(parts, dim=1)

    def unroll(self, features: Sequence[Tensor], states: Tensor, starts: Tensor) -> list[Tensor]:
        """Takes all env steps of n sequences; gradients flow back through time.

        Args:
            features: the features of each trunk in time-major order, float32 [T * n, num_features].
            states: memory states before the first env step, float32 [n, S].
            starts: bool [T, n]; True where an episode begins, so that the state becomes 0.

        Returns:
            The output of each cell in time-major order, float32 [T * n, size].
        """
        num_steps, width = starts.shape
        steps = zip(*(x.view(num_steps, width, -1) for x in features), strict=True)
        outputs = []
        for start, of_step in zip(starts, steps, strict=True):
            found, states = self(of_step, forget(states, start))
            outputs.append(found)
        return [torch.cat(of_cell) for of_cell in zip(*outputs, strict=True)]

    @torch.no_grad()
    def initialize(self, rng: torch.Generator) -> None:
        """Sets orthogonal weights and zero biases, except for the bias of gates that keep a state.

        This bias is 1, so that a new cell remembers (Jozefowicz et al., 2015).
        """
        for cell in self.cells:
            assert isinstance(cell, nn.LSTMCell | nn.GRUCell)
            for weight in (cell.weight_ih, cell.weight_hh):
                nn.init.orthogonal_(weight, generator=rng)
            cell.bias_ih.zero_()
            cell.bias_hh.zero_()
            # The second gate in torch's order: an LSTM's forget gate, a GRU's update gate.
            cell.bias_ih[self.size : 2 * self.size] = 1.0


def forget(states: Tensor, starts: Tensor) -> Tensor:
    """Returns memory states [n, S], set to 0 where `starts`, bool [n], is True."""
    return states.masked_fill(starts[:, None], 0.0)


def build_memory(network: NetworkConfig, nums_features: Sequence[int]) -> Memory | None:
    """Builds the memory behind trunks; returns None with `network.memory=none`."""
    if network.memory == "none":
        return None
    return Memory(network.memory, network.memory_size, nums_features)
