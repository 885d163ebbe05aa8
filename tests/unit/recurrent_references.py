"""Slow float64 references of recurrent policies, which step through a slot in loops.

They use nothing of the networks: cells are written out after their equations.

Shapes: T env steps, B columns, A actions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from htsrl_cli.storage.slot import Slot

Theta = dict[str, Tensor]


class Counting(nn.GRUCell):
    """A cell whose state is the number of env steps of the episode so far."""

    def forward(self, x: Tensor, hx: Tensor | None = None) -> Tensor:
        assert hx is not None
        return hx + 1


def lstm(theta: Theta, cell: str, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the output and the next state, (h, c), of an LSTM (Hochreiter and Schmidhuber)."""
    h, c = state.chunk(2)
    gates = theta[f"{cell}.weight_ih"] @ x + theta[f"{cell}.bias_ih"]
    gates = gates + theta[f"{cell}.weight_hh"] @ h + theta[f"{cell}.bias_hh"]
    i, f, g, o = gates.chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return h, torch.cat([h, c])


def gru(theta: Theta, cell: str, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the output and the next state of a GRU (Cho et al., 2014), which are the same."""
    of_x = (theta[f"{cell}.weight_ih"] @ x + theta[f"{cell}.bias_ih"]).chunk(3)
    of_h = (theta[f"{cell}.weight_hh"] @ state + theta[f"{cell}.bias_hh"]).chunk(3)
    r, z = torch.sigmoid(of_x[0] + of_h[0]), torch.sigmoid(of_x[1] + of_h[1])
    n = torch.tanh(of_x[2] + r * of_h[2])
    h = (1 - z) * n + z * state
    return h, h


def recurrent_network(theta: Theta, slot: Slot) -> tuple[Tensor, Tensor]:
    """Returns all actions' log-probabilities [T + 1, B, A] and the values [T + 1, B] of a slot."""
    num_rows, num_columns = slot.values.shape
    log_p, values = [], []
    for c in range(num_columns):
        assert slot.memories is not None
        memory = torch.tensor(slot.memories[0, c], dtype=torch.float64)
        for t in range(num_rows):
            if t > 0 and (slot.terminated[t - 1, c] or slot.truncated[t - 1, c]):
                memory = torch.zeros_like(memory)
            obs = torch.tensor(slot.obs[t, c], dtype=torch.float64)
            logits, value, memory = _step(theta, obs, memory)
            log_p.append(logits - torch.log(torch.exp(logits).sum()))
            values.append(value)
    by_column = torch.stack(log_p).view(num_columns, num_rows, -1)
    return by_column.transpose(0, 1), torch.stack(values).view(num_columns, num_rows).T


def _step(theta: Theta, obs: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Takes one env step with one cell for the policy and one for the value."""
    trunks, heads = ("trunk", "value_trunk"), ("policy_head", "value_head")
    states, found = [], []
    for k, own in enumerate(memory.chunk(2)):
        trunk, head, cell = trunks[k], heads[k], f"memory.cells.{k}"
        inner = theta[f"{trunk}.layers.0.weight"] @ obs + theta[f"{trunk}.layers.0.bias"]
        size = theta[f"{cell}.weight_hh"].shape[1]
        step = lstm if len(theta[f"{cell}.weight_hh"]) == 4 * size else gru
        output, state = step(theta, cell, torch.tanh(inner), own)
        found.append(theta[f"{head}.weight"] @ output + theta[f"{head}.bias"])
        states.append(state)
    return found[0], found[1][0], torch.cat(states)
