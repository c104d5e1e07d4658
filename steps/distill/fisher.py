"""How much each hidden dimension matters to the original's predictions, block by block.

N windows, S positions, D hidden size, P predicted positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from steps.model.positions import Batch
from steps.model.stream import Stream
from steps.sensitivity.backward import generator_of, label_gradient


def output_fisher(stream: Stream, blocks: Sequence[nn.Module], parts: Sequence[Batch], seed: int) -> list[torch.Tensor]:
    """fisher_D for each block's output: the mean over positions of the squared gradient of the log-likelihood of one
    label drawn from the original (the diagonal of the true Fisher matrix), scaled to mean 1.

    Source: BRECQ (Li et al. 2021, arXiv:2102.05426, section 3.3). Differs from the paper: one weight per dimension, not
    one per position and dimension, and labels drawn from the model instead of the data's.
    """
    generator = generator_of(stream.device, seed)
    sum_KD = torch.zeros(len(blocks), stream.config.hidden_size, device=stream.device)
    for part in parts:
        entering = [stream.embed(part.ids_NS)]
        with torch.no_grad():
            for block in blocks:
                entering.append(stream.run(block, entering[-1]))
        gradient_NSD = label_gradient(stream, part, entering[-1], 1, generator)[0]
        for k in reversed(range(len(blocks))):
            sum_KD[k] += part.pick(gradient_NSD).square().sum(0)
            leaf_NSD = entering[k].detach().requires_grad_()
            (gradient_NSD,) = torch.autograd.grad(stream.run(blocks[k], leaf_NSD), leaf_NSD, gradient_NSD)
    return [fisher_D / fisher_D.mean().clamp(min=torch.finfo(torch.float32).tiny) for fisher_D in sum_KD]
