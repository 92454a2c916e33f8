"""Curvature without a Hessian: the extreme eigenvalues of every task's H from Hessian-vector products alone."""

import torch
from torch import Tensor

from maml_edu.hessian_vector import hvp
from maml_edu.tasks import Loss, Params


def extreme_curvatures(loss: Loss, params: Params, x: Tensor, y: Tensor, iterations: int = 30) -> tuple[Tensor, Tensor]:
    """The smallest and largest eigenvalue [T], [T] of the Hessian of `loss` at params (dict [T, …]), for every task.

    Lanczos's method with full reorthogonalisation (Golub & Van Loan, Matrix Computations, §10.3), one Hessian-vector
    product per iteration for all tasks at once. The estimates lie within the spectrum and reach its ends, exactly
    after as many iterations as there are parameters, usually much sooner. The start is drawn with seed 0.
    A task whose params are not finite, an inner loop that diverged, gets nan.
    """
    tasks, sizes = x.shape[0], [p[0].numel() for p in params.values()]
    like = next(iter(params.values()))

    def product(q: Tensor) -> Tensor:  # [T, P] -> [T, P]
        v = {name: part.view_as(p) for (name, p), part in zip(params.items(), q.split(sizes, 1))}
        return torch.cat([t.reshape(tasks, -1) for t in hvp(loss, params, x, y, v).values()], 1)

    seeded = torch.Generator().manual_seed(0)
    q = torch.randn(sum(sizes), generator=seeded, dtype=torch.float64).to(like).expand(tasks, -1)
    basis: list[Tensor] = [q / q.norm(dim=1, keepdim=True)]
    diagonal: list[Tensor] = []
    off_diagonal: list[Tensor] = []
    exhausted = torch.zeros(tasks, dtype=torch.bool, device=like.device)  # the basis holds an invariant subspace
    tiny = 100 * torch.finfo(like.dtype).eps
    for _ in range(min(iterations, sum(sizes))):
        w = product(basis[-1])
        of_q = (w * basis[-1]).sum(1)
        diagonal.append(torch.where(exhausted, diagonal[0] if diagonal else of_q, of_q))  # within the spectrum
        size = w.norm(dim=1)
        Q = torch.stack(basis, 1)  # [T, j, P]
        for _ in range(2):  # once is not enough in floating point
            w = w - torch.einsum("tjp,tj->tp", Q, torch.einsum("tjp,tp->tj", Q, w))
        beta = w.norm(dim=1)
        exhausted = exhausted | (beta <= tiny * size)
        off_diagonal.append(torch.where(exhausted, 0, beta))
        basis.append(torch.where(exhausted[:, None], 0, w / beta.clamp_min(torch.finfo(like.dtype).tiny)[:, None]))
    tridiagonal = torch.diag_embed(torch.stack(diagonal, 1))
    if len(diagonal) > 1:
        beside = torch.stack(off_diagonal[:-1], 1)
        tridiagonal = tridiagonal + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    finite = tridiagonal.isfinite().flatten(1).all(1, keepdim=True)  # [T, 1]
    curvatures = torch.linalg.eigvalsh(torch.where(finite[:, :, None], tridiagonal, 0))
    curvatures = torch.where(finite, curvatures, torch.nan)
    return curvatures[:, 0], curvatures[:, -1]
