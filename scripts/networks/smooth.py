# SPDX-FileCopyrightText: Copyright (c) 2026 the smooth MIL bundle authors
# SPDX-License-Identifier: Apache-2.0
"""The smooth operator Sm of SmMIL (arXiv 2410.03276): neighbouring instances of a bag come closer to each other."""

import math
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor, nn

from scripts.networks.graph import (
    Graph,
    Table,
    exporting,
    normalised,
    on_accelerator,
    product,
    readable,
    rows_of,
    table,
    table_of,
)

LARGEST_ALPHA = 0.99995


class Adjacency(NamedTuple):
    """Ã = D^-1/2 A D^-1/2 of all bags of a batch as one table, M = B*N."""

    table: Table  # [M, M] in the type of the work; float64 of a chain, of which differences are small
    isolated: Tensor  # [M, 1] bool, without a neighbour but itself
    chain: bool


def adjacency(graph: Graph, x: Tensor) -> Adjacency:
    """Normalise the graph of each bag, once for all uses of Sm on it, for what is of the type of x."""
    if graph.neighbours.shape[1] == 0:
        raise ValueError("smoothing needs neighbours: give the network spatial_dims 1 (slices) or 2 (patches)")
    a = table_of(normalised(graph, torch.double if graph.chain or x.dtype == torch.double else torch.float))
    isolated = graph.weights.sum(dim=1).flatten().unsqueeze(1) == 0
    return Adjacency(a, isolated, graph.chain)


class SmoothOperator(nn.Module):
    """Sm(U) = (1 - α)(I - αÃ)^-1 U with Ã = D^-1/2 A D^-1/2, a symmetric matrix.

    approx: T steps of the paper, G(0) = U, G(t) = (1 - α) U + α Ã G(t-1); at α = 0.9 the error is 5-6 %.
    approx, accelerated: Chebyshev's series of Sm up to degree T, for the same cost.
    exact: a direct solution for a chain; for other graphs as many terms of that series as the precision needs.

    Args:
        alpha: Strength of smoothing, between 0 (none) and 1; "trainable" starts at 0.5 and is learned.
        mode: "approx" or "exact"; alpha means the same in both.
        steps: T of "approx".
        accelerated: Use Chebyshev's series instead of the paper's steps, in "approx".
    """

    def __init__(
        self, alpha: float | str = 0.5, mode: str = "approx", steps: int = 10, accelerated: bool = False
    ) -> None:
        super().__init__()
        if alpha == "trainable":
            self.alpha_logit = nn.Parameter(torch.zeros(()))
        elif isinstance(alpha, str) or not 0 < alpha <= LARGEST_ALPHA:
            raise ValueError(f"alpha is {alpha!r}: 'trainable', or between 0 and 1, at most {LARGEST_ALPHA}, is wanted")
        else:
            self.register_buffer("alpha_logit", torch.tensor(math.log(alpha / (1 - alpha))))
        if mode not in ("approx", "exact"):
            raise ValueError(f"mode is {mode!r}: 'approx' or 'exact' is wanted")
        if mode == "exact" and accelerated:
            raise ValueError("accelerated belongs to the mode 'approx': leave it out, or the mode 'exact'")
        if steps < 1:
            raise ValueError(f"steps is {steps}: at least 1 is wanted")
        self.exact = mode == "exact"
        self.steps = steps
        self.accelerated = accelerated
        self.trained = isinstance(alpha, str)
        self._terms, self._terms_of_double = terms_of(0.99 if isinstance(alpha, str) else alpha)
        if not self.trained:
            self.register_load_state_dict_post_hook(_settle)  # weights may bring another alpha

    @property
    def alpha(self) -> Tensor:
        """The strength of smoothing, within (0, 1) by construction."""
        return torch.sigmoid(self.logit())

    def logit(self) -> Tensor:
        """Return the logit of alpha, at most that of LARGEST_ALPHA: nearer to 1 the exact mode takes too long."""
        return self.alpha_logit.clamp(-30.0, 9.9)

    @torch.jit.unused
    def settle(self) -> None:
        """Fix the number of terms of an exported file to what alpha needs now; without this, to what 0.99 needs."""
        self._terms, self._terms_of_double = terms_of(float(self.alpha.detach()))

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """Return Sm(x) [B, D, N] of x [B, D, N], padding 0."""
        if x.dim() != 3 or x.shape[2] != graph.neighbours.shape[2]:
            raise ValueError(f"x does not fit a graph of {graph.neighbours.shape[2]} instances: [B, D, N] is wanted")
        a = adjacency(graph, x)
        return self.along(x, a, self.factors(x, a.chain))

    @torch.jit.unused
    def evenly(self, x: Tensor, graph: Graph) -> Tensor:
        """Return D^-1/2 Sm D^1/2 x: equal values stay as they are where a bag ends, as under Sm itself they do not."""
        degree = graph.weights.sum(dim=1, keepdim=True)  # [B, 1, N]
        root = torch.where(degree > 0, degree, torch.ones_like(degree)).sqrt()
        return self(x * root, graph) / root  # [B, D, N]

    @torch.jit.export
    def factors(self, x: Tensor, chain: bool) -> Tensor:
        """Return the factors [terms] of the series, in float64; of a chain that is solved, α and 1 - α."""
        logit = self.logit().double()
        alpha, rest = torch.sigmoid(logit), torch.sigmoid(-logit)  # 1 - alpha without cancellation
        if self.exact and chain and not exporting():
            return torch.stack([alpha, rest])
        if self.exact:
            terms = self._terms, self._terms_of_double
            if not exporting() and (self.trained or readable(x)):  # of an alpha that is trained the number is asked for
                terms = terms_of(float(alpha.detach()))
            return chebyshev_terms(alpha, rest, terms[1] if x.dtype == torch.double else terms[0])
        if self.accelerated:
            return chebyshev_terms(alpha, rest, self.steps)
        return paper_terms(alpha, rest, self.steps)

    @torch.jit.export
    def along(self, x: Tensor, normalised_graph: Adjacency, c: Tensor) -> Tensor:
        """Smooth x [B, D, N] along a graph already normalised, by its `factors`, for those who use both more than once.

        In half precision, which would round alpha and add up the errors of the steps, x is smoothed in float32.
        """
        a, isolated, chain = normalised_graph  # Ã [M, M], [M, 1]
        u = rows_of(x)  # [M, D]
        if x.dtype == torch.half or x.dtype == torch.bfloat16:
            u = u.float()
        if self.exact and chain and not exporting():
            g = solved_chain(u, c[0], c[1], a)
        else:
            g = smooth_series(u, c, a, self.exact or self.accelerated)
            if self.accelerated:
                g = torch.where(isolated, u, g)  # of which the series leaves out the last terms
        return g.to(x.dtype).view(x.shape[0], x.shape[2], x.shape[1]).transpose(1, 2)


def _settle(module: Any, _: Any) -> None:
    module.settle()


def paper_terms(alpha: Tensor, rest: Tensor, steps: int) -> Tensor:
    """Return the T + 1 factors of the powers of Ã: T steps are Σ_k<T (1 - α) α^k Ã^k + α^T Ã^T."""
    powers = alpha ** torch.arange(steps + 1, device=alpha.device)
    return torch.cat([rest * powers[:-1], powers[-1:]])


def chebyshev_terms(alpha: Tensor, rest: Tensor, steps: int) -> Tensor:
    """Return the factors of T_k in (1 - α) / (1 - αλ) = (1 - r) / (1 + r) · (1 + 2 Σ r^k T_k(λ)), α = 2r / (1 + r²)."""
    r = alpha / (1 + torch.sqrt(rest * (1 + alpha)))
    powers = r ** torch.arange(steps + 1, device=alpha.device)
    return (1 - r) / (1 + r) * torch.cat([powers[:1], 2 * powers[1:]])


def terms_of(alpha: float) -> tuple[int, int]:
    """Return how many terms the precision of float32 needs, and that of float64."""
    return terms_for(alpha, 1e-6), terms_for(alpha, 1e-12)


def terms_for(alpha: float, error: float) -> int:
    """Return how many terms leave a remainder below `error`, relative to the most strongly damped component."""
    r = alpha / (1 + math.sqrt((1 - alpha) * (1 + alpha)))
    allowed = error * (1 - alpha)
    return 1 + math.ceil(math.log(2 / allowed) / -math.log(r))


def series(
    u: Tensor, factors: Tensor, a: Table, chebyshev: bool, against: Optional[Tensor] = None
) -> tuple[Tensor, Tensor]:
    """Return Σ_k c_k B_k(Ã) u [M, D] and ⟨B_k(Ã) u, against⟩ [terms], B_k the powers or Chebyshev's polynomials.

    u, against: [M, D], factors: c [terms], a: Ã.
    """
    c = factors.to(u)
    once = Table(a.columns, a.weights.to(u), a.starts)
    twice = Table(a.columns, 2 * once.weights, a.starts) if chebyshev else once
    # a processor's cache holds 32 columns, three times as fast for a large bag; a GPU holds 128 MiB of terms thrice
    at_once = max(1, (1 << 25) // max(1, c.shape[0] * u.shape[0])) if on_accelerator(u) else 32
    sums: list[Tensor] = []
    dots = torch.zeros_like(c)
    for column in range(0, u.shape[1], at_once):
        some = u[:, column : column + at_once].contiguous()  # [M, 32]
        other = None if against is None else against[:, column : column + at_once].contiguous()  # [M, 32]
        if on_accelerator(u):
            total, along = _all_terms(some, c, once, twice, chebyshev, other)
        else:
            total, along = _term_by_term(some, c, once, twice, chebyshev, other)
        sums.append(total)
        dots = dots + along
    return torch.cat(sums, dim=1), dots


def _next_term(k: int, before: Tensor, now: Tensor, once: Table, twice: Table, chebyshev: bool) -> Tensor:
    """Return term k of the two ahead of it: Ã now, or T_k = 2 Ã T_k-1 - T_k-2, of which the first is Ã u."""
    if chebyshev and k > 1:
        return product(twice, now).sub_(before)
    return product(once, now)


def _term_by_term(
    u: Tensor, c: Tensor, once: Table, twice: Table, chebyshev: bool, against: Optional[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the sum and the dot products, with two terms in memory."""
    before, now, total = u, u, c[0] * u  # [M, 32]
    dots = [] if against is None else [torch.dot(u.flatten(), against.flatten())]
    for k in range(1, c.shape[0]):
        before, now = now, _next_term(k, before, now, once, twice, chebyshev)
        total.addcmul_(now, c[k])
        if against is not None:
            dots.append(torch.dot(now.flatten(), against.flatten()))
    return total, torch.zeros_like(c) if against is None else torch.stack(dots)


def _all_terms(
    u: Tensor, c: Tensor, once: Table, twice: Table, chebyshev: bool, against: Optional[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the same with all terms in memory, in fewer and larger operations."""
    every = [u]
    for k in range(1, c.shape[0]):
        every.append(_next_term(k, every[k - 2], every[k - 1], once, twice, chebyshev))
    terms = torch.stack(every)  # [terms, M, columns]
    total = (c.view(-1, 1, 1) * terms).sum(dim=0)  # [M, columns]; autocast would multiply in half precision
    return total, torch.zeros_like(c) if against is None else (terms * against).sum(dim=[1, 2])


class _Series(torch.autograd.Function):
    """The series with its gradient: as Ã is symmetric, the same series of the gradient, so that no step is kept."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, factors: Tensor, chebyshev: bool, *a: Tensor) -> Tensor:
        ctx.save_for_backward(u if factors.requires_grad else None, factors, *a)
        ctx.chebyshev = chebyshev
        return series(u, factors, Table(*a), chebyshev)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
        u, factors, *a = ctx.saved_tensors
        grad_u, grad_factors = series(grad, factors, Table(*a), ctx.chebyshev, against=u)
        return grad_u, grad_factors.to(factors), None, None, None, None


def smooth_series(u: Tensor, factors: Tensor, a: Table, chebyshev: bool) -> Tensor:
    """Sum the series; in training by the function that keeps no step."""
    if not torch.jit.is_scripting() and not exporting():
        g: Tensor = _Series.apply(u, factors, chebyshev, *a)
        return g
    return series(u, factors, a, chebyshev)[0]


def solve_chain(u: Tensor, alpha: Tensor, rest: Tensor, chain: Table) -> Tensor:
    """Solve (1 - α)(I - αÃ)^-1 u for chains by cyclic reduction: each round couples instances twice as far apart."""
    own = torch.arange(u.shape[0], device=u.device)  # [M]
    neighbours = chain.columns.long().view(-1, 2)  # [M, 2]
    a = alpha.to(u.device) * chain.weights.view(-1, 2)  # [M, 2], float64: the differences below are small
    at_itself = neighbours == own.unsqueeze(1)
    diagonal = 1 - torch.where(at_itself, a, torch.zeros_like(a)).sum(dim=1)  # [M]
    coupled = torch.where(at_itself, torch.zeros_like(a), -a)  # [M, 2] to the one before and the one after
    g = rest.to(u) * u
    reach = 1  # how far apart coupled instances are
    while reach < u.shape[0] and not (readable(coupled) and bool((coupled.abs() <= 1e-17).all())):
        far = coupled / diagonal[neighbours]  # [M, 2]
        columns = torch.cat([own.unsqueeze(1), neighbours], dim=1)
        g = product(table(columns, torch.cat([torch.ones_like(far[:, :1]), -far], dim=1).to(u)), g)
        # an instance before couples back by its second number, one after by its first
        back = torch.stack([coupled[neighbours[:, 0], 1], coupled[neighbours[:, 1], 0]], dim=1)
        on = torch.stack([coupled[neighbours[:, 0], 0], coupled[neighbours[:, 1], 1]], dim=1)
        diagonal = diagonal - (far * back).sum(dim=1)
        coupled = -far * on
        neighbours = torch.stack([neighbours[neighbours[:, 0], 0], neighbours[neighbours[:, 1], 1]], dim=1)
        reach *= 2
    return g / diagonal.to(u).unsqueeze(1)


def solved_chain(u: Tensor, alpha: Tensor, rest: Tensor, chain: Table) -> Tensor:
    """Solve a chain; in training by the function that keeps one solution alone."""
    if not torch.jit.is_scripting():
        g: Tensor = _Chain.apply(u, alpha, rest.detach(), *chain)
        return g
    return solve_chain(u, alpha, rest, chain)


class _Chain(torch.autograd.Function):
    """The solution with its gradient: S is symmetric, and ⟨v, dS/dα u⟩ = (⟨S v, Ã S u⟩ - ⟨v, S u⟩) / (1 - α)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, alpha: Tensor, rest: Tensor, *a: Tensor) -> Tensor:
        g = solve_chain(u, alpha, rest, Table(*a))
        ctx.save_for_backward(g if alpha.requires_grad else None, alpha, rest, *a)
        return g

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
        g, alpha, rest, *table_of_chain = ctx.saved_tensors
        a = Table(*table_of_chain)
        grad_u = solve_chain(grad, alpha, rest, a)
        grad_alpha = None
        if g is not None:
            change = (grad_u * product(a._replace(weights=a.weights.to(g)), g)).sum() - (grad * g).sum()
            grad_alpha = change.to(alpha) / rest
        return grad_u, grad_alpha, None, None, None, None  # rest = 1 - alpha is counted with alpha
