"""PKT: the student's distribution of similarities between images matches the teacher's, both in the pooled embedding.

Passalis and Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018. Weight 30000 as in the CRD protocol,
where the divergence is a mean over all B^2 pairs. An embedding of 0, whose gradient is NaN in public code, passes none here.
"""

import torch
from torch import Tensor

from methods._maps import Weighted, only_weight
from methods.base import Needs
from methods.registry import register
from models.outputs import Outputs

EPS = 1e-7  # joins norms and probabilities


def probabilities(embedding: Tensor) -> Tensor:
    """P with rows (c_i + 1) / 2 scaled to sum 1, c_i the cosines of image i to all images, itself among them; (B, D) -> (B, B)
    (Passalis and Tefas 2018, the cosine kernel). An embedding of 0 has cosine 0 to all images."""
    norm = torch.linalg.vector_norm(embedding, dim=1, keepdim=True)
    rows = embedding * (norm > 0) / (norm + EPS)
    similarity = (rows @ rows.T + 1.0) / 2.0
    return similarity / similarity.sum(1, keepdim=True)


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 / B^2 * sum_ij p_ij ln((p_ij + eps) / (q_ij + eps)), p the teacher's and q the student's probabilities; embeddings (B, D), widths may
    differ -> scalar (Passalis and Tefas 2018)."""
    p, q = probabilities(teacher), probabilities(student)
    return (p * ((p + EPS) / (q + EPS)).log()).mean()


@register("pkt")
class PKT(Weighted):
    title = "PKT"
    paper = "Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018"
    Hyper = only_weight(30000.0)  # CRD protocol's
    teacher_outputs = Needs(embedding=True)
    term = "pkt"

    def loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        return pkt_loss(student.embedding, teacher.embedding)
