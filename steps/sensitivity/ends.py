"""What embedding and head do to the predictions: the same two questions as of a linear, asked outside the blocks.

The embedding's output at a token is a row of its own, W[id]; the head's is the logits, where the gradient of the
log-likelihood of a label is onehot(label) - p. A tied matrix is used at both, so its two effects are added.

P predicted positions, D hidden size, V vocabulary, M samples of labels, C documents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steps.model.stream import Stream
from steps.verify.metrics import chunks

EMBEDDING_PATH, HEAD_PATH = "model.embed_tokens", "lm_head"


@dataclass(frozen=True)
class Ends:
    """Of one batch at predicted positions: ids, final-normed hidden states, labels drawn, gradient at the embedding."""

    stream: Stream
    id_P: torch.Tensor
    normed_PD: torch.Tensor
    label_PM: torch.Tensor
    gradient_MPD: torch.Tensor

    @property
    def positions(self) -> int:
        """Predicted positions of the batch."""
        return len(self.id_P)

    def dot(self, path: str, delta_OI: torch.Tensor) -> torch.Tensor:
        """g . dz at every predicted position, dot_MP, for a change of the embedding, the head, or the two in one."""
        total_MP = torch.zeros_like(self.gradient_MPD[..., 0])
        if path == EMBEDDING_PATH:
            total_MP += torch.einsum("mpd,pd->mp", self.gradient_MPD, delta_OI[self.id_P])
        if path == HEAD_PATH or self.stream.tied:
            for rows in chunks(len(self.id_P), len(delta_OI)):
                normed_PD = self.normed_PD[rows]
                p_PV, dz_PV = torch.softmax(self.stream.logits(normed_PD), dim=-1), normed_PD @ delta_OI.T
                total_MP[:, rows] += (
                    dz_PV.gather(1, self.label_PM[rows]) - torch.linalg.vecdot(p_PV, dz_PV)[:, None]
                ).T
        return total_MP

    def squares(self, path: str, document_P: torch.Tensor, documents: int) -> torch.Tensor:
        """Sum of g^2 by document and row, square_CV fp64 on the CPU.

        Of the head (or a tied matrix), of the logits; of the embedding, of the mean component of the output, the same
        for every row, because what its rows record is weighted by how often they are used.
        """
        vocabulary = int(self.stream.config.vocab_size)
        sum_CV = torch.zeros(documents, vocabulary, dtype=torch.float64)
        if path == EMBEDDING_PATH and not self.stream.tied:
            square_P = self.gradient_MPD.square().mean((0, 2)).double().cpu()
            return sum_CV.index_add_(0, document_P, square_P[:, None].expand(-1, vocabulary))
        for rows in chunks(len(self.id_P), vocabulary):
            p_PV = torch.softmax(self.stream.logits(self.normed_PD[rows]), dim=-1)
            for label_P in self.label_PM[rows].T:
                g_PV = (-p_PV).scatter_add(1, label_P[:, None], torch.ones_like(p_PV[:, :1]))
                sum_CV.index_add_(0, document_P[rows], g_PV.square_().double().cpu() / self.label_PM.shape[1])
        return sum_CV
