"""Maps a student's features to the space of its teacher's; trained with the student, and no part of the model.

Letters: B images, D features of the student, T of the teacher, N the larger and M the smaller of both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deitctl import rng


class OrthogonalProjection(nn.Module):
    """A linear map of D features to T that keeps lengths and angles, or where T is smaller, cuts directions off.

    VkD (arXiv 2403.06213): a projection that can only rotate lets the student's features learn, where a
    free one learns in their place. Its released code (train.py) takes torch's parametrization `orthogonal` of a linear
    layer without bias: a product of M Householder reflections of N numbers. That is the map here too, with three
    departures. The product is computed at once as I - V T V' (Schreiber and Van Loan 1989; as a parametrization
    Likhosherstov et al., arXiv 2004.08675), in float64 where the device has it, since torch's backward pass takes
    seconds for 3,024 features; and it is not relative to a fixed random square matrix, which would be the largest part
    of a checkpoint. Where D is T, torch takes the matrix exponential of a skew-symmetric matrix instead, and here they
    are reflections all the same. Weight decay leaves it out: it would pull the projection to one that is not random.
    """

    def __init__(self, num_student: int, num_teacher: int) -> None:
        super().__init__()
        self.is_wide = num_teacher < num_student
        size = max(num_student, num_teacher)
        self.reflections = nn.Parameter(torch.empty(size, min(num_student, num_teacher)))
        # The reflections of a random matrix of orthonormal columns, nearly: each vector is 1, then numbers of about
        # as much length together.
        nn.init.normal_(self.reflections, std=size**-0.5)

    def compute_weight(self) -> Tensor:
        """Return the matrix [T,D], of orthonormal columns, or of rows where T is smaller."""
        values = self.reflections
        dtype = torch.float32 if values.device.type == "mps" else torch.float64
        size, count = values.shape
        eye = torch.eye(size, count, dtype=dtype, device=values.device)
        vectors = values.to(dtype).tril(-1) + eye
        products = vectors.T @ vectors
        factor = products.triu(1) + torch.diag(products.diagonal() / 2)
        inner = torch.linalg.solve_triangular(factor, vectors[:count].T, upper=True)
        weight: Tensor = (eye - vectors @ inner).to(values.dtype)
        return weight.T if self.is_wide else weight

    def forward(self, features: Tensor) -> Tensor:
        """Project features [B,D] to [B,T]."""
        return F.linear(features, self.compute_weight())


def build_projector(
    loss: str, num_student: int, num_teachers: Sequence[int], seed: int
) -> nn.ModuleList:
    """Build a projection for each teacher, initialized by the seed.

    Args:
        loss: of the features: `vkd` takes an orthogonal projection, the others a linear layer, as FitNets (arXiv
            1412.6550) and the baselines of VkD's paper have it.
        num_student: D.
        num_teachers: T of each teacher.
        seed: of the run.
    """
    with rng.scope(seed, "projector"):
        return nn.ModuleList(
            OrthogonalProjection(num_student, number)
            if loss == "vkd"
            else nn.Linear(num_student, number)
            for number in num_teachers
        )
