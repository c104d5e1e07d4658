"""The parametrisations of codes: what each paper promises of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from schemas.distill import Annealed, Box, Logits, Offsets, StraightThrough
from steps.distill.build import build_code
from steps.distill.codes.annealed import AnnealedCode, soft
from steps.distill.codes.box import BoxCode
from steps.distill.codes.code import Bounds, Grid
from steps.distill.codes.spacing import Spacing
from steps.distill.divergence import divergence

SPECS = [
    StraightThrough(kind="ste", start="weights"),
    Box(kind="box"),
    Annealed(kind="annealed"),
    Offsets(kind="offsets"),
]


def grid(spread: float = 1.0) -> Grid:
    """3-bit signed levels of random weights, rounded to nearest."""
    generator = torch.Generator().manual_seed(0)
    weight_OGJ = spread * torch.randn(4, 3, 16, generator=generator)
    scale_OG = weight_OGJ.abs().amax(-1) / 3
    bounds = Bounds(torch.full((4, 3, 1), -4.0), torch.full((4, 3, 1), 3.0))
    return Grid(
        bounds.clamp((weight_OGJ / scale_OG[..., None]).round()), bounds, Spacing(scale_OG[..., None]), weight_OGJ
    )


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_every_start_hardens_to_round_to_nearest_and_stays_inside(spec: object) -> None:
    at = grid()
    code = build_code(spec, at)  # type: ignore[arg-type]
    assert torch.equal(code.hard(at.spacing), at.level_OGJ)
    with torch.no_grad():
        code.variable.add_(100 * torch.randn(code.variable.shape, generator=torch.Generator().manual_seed(1)))  # type: ignore[union-attr]
    code.project()
    hard = code.hard(at.spacing)
    assert torch.equal(hard, hard.round()) and hard.min() >= -4 and hard.max() <= 3
    if spec.kind != "ste":  # type: ignore[attr-defined]
        assert (hard - at.wanted()).abs().max() <= 1 + 1e-5, "one step from the weight at most"


@pytest.mark.parametrize("spec", SPECS[1:3], ids=lambda spec: spec.kind)
def test_soft_codes_start_as_the_weights_themselves(spec: object) -> None:
    at = grid()
    levels = build_code(spec, at).levels(at.spacing)  # type: ignore[arg-type]
    torch.testing.assert_close(levels * at.spacing.step_OG1, at.weight_OGJ, rtol=1e-4, atol=1e-5)


def test_a_cell_keeps_the_code_and_which_way_the_weight_was_rounded() -> None:
    at = grid()
    code = build_code(StraightThrough(kind="ste", start="cell"), at)
    assert code.variable is not None
    away_OGJ, wanted_OGJ = code.variable.detach() - at.level_OGJ, at.wanted() - at.level_OGJ
    torch.testing.assert_close(away_OGJ, wanted_OGJ.clamp(-0.35, 0.35), rtol=1e-4, atol=1e-5)


def test_the_box_without_a_loss_is_round_to_nearest() -> None:
    at = grid()
    code = build_code(Box(kind="box"), at)
    assert isinstance(code, BoxCode)
    for _ in range(200):
        code.variable.grad = torch.zeros_like(code.variable)
        code.shape_gradient(0.0)
        with torch.no_grad():
            code.variable.sub_(code.variable.grad, alpha=0.1)
        code.project()
    tied = (code.own_OGJ - 0.5).abs() < 0.02
    settled = code.variable.detach()[~tied]
    assert ((settled < 0.01) | (settled > 0.99)).all()
    assert torch.equal(code.hard(at.spacing)[~tied], at.level_OGJ[~tied])


def test_the_penalty_drives_soft_rounding_to_the_ends() -> None:
    at = grid()
    code = build_code(Annealed(kind="annealed", penalty=1.0), at)
    assert isinstance(code, AnnealedCode)
    optimizer = torch.optim.Adam([code.variable], lr=0.1)
    for step in range(200):
        code.variable.grad = torch.zeros_like(code.variable)
        code.shape_gradient(step / 200)
        optimizer.step()
    h = soft(code.variable.detach())
    assert ((h < 0.01) | (h > 0.99)).float().mean() > 0.99


@pytest.mark.parametrize(("progress", "beta"), [(0.4, 20), (0.7, 11), (1.0, 2)])
def test_the_penalty_begins_after_the_free_share_and_its_beta_falls(progress: float, beta: float) -> None:
    """AdaRound, equation 24."""
    code = build_code(Annealed(kind="annealed", penalty=0.5, first=20, last=2, free=0.4), grid())
    assert isinstance(code, AnnealedCode)
    of_loss = torch.ones_like(code.variable)
    code.variable.grad = of_loss.clone()
    code.shape_gradient(0.39)
    assert torch.equal(code.variable.grad, of_loss)
    code.shape_gradient(progress)
    alpha = code.variable.detach().clone().requires_grad_()
    (0.5 * (1 - (2 * soft(alpha) - 1).abs() ** beta)).sum().backward()
    torch.testing.assert_close(code.variable.grad, of_loss + alpha.grad)


def test_the_box_is_pushed_by_the_loss_over_the_rounding_error_within_its_clamp() -> None:
    at = grid()
    code = build_code(Box(kind="box", strength=3, clamp=0.25), at)
    assert isinstance(code, BoxCode)
    error = 12 * (at.spacing.weights(at.level_OGJ) - at.weight_OGJ).square().mean()
    relative = torch.linspace(-0.2, 0.2, code.variable.numel()).view_as(code.variable)
    code.variable.grad = relative * error
    code.shape_gradient(0.0)
    torch.testing.assert_close(code.variable.grad, 1 - 2 * code.own_OGJ + (3 * relative).clamp(-0.25, 0.25))


def test_offsets_reach_no_further_than_their_limit() -> None:
    at = grid()
    code = build_code(Offsets(kind="offsets", limit=0.2), at)
    assert code.variable is not None
    with torch.no_grad():
        code.variable.add_(torch.randn(code.variable.shape, generator=torch.Generator().manual_seed(1)))
    code.project()
    away = (code.hard(at.spacing) - at.wanted()).abs().max()
    assert 0.5 < away <= 0.7 + 1e-5


def test_the_gradient_of_the_box_is_the_step_between_neighbours() -> None:
    at = grid()
    code = build_code(Box(kind="box"), at)
    toward = torch.randn(at.weight_OGJ.shape, generator=torch.Generator().manual_seed(2))
    (code.levels(at.spacing) * at.spacing.step_OG1 * toward).sum().backward()
    assert isinstance(code, BoxCode) and code.variable.grad is not None
    step = (code.above_OGJ - code.below_OGJ) * at.spacing.step_OG1
    torch.testing.assert_close(code.variable.grad, step * toward)


def _pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(6, 11, generator=generator), torch.randn(6, 11, generator=generator)


def test_divergences_against_their_definitions() -> None:
    p_PV, q_PV = _pair()
    log_p, log_q = torch.log_softmax(p_PV, -1), torch.log_softmax(q_PV, -1)
    forward = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    reverse = (log_q.exp() * (log_q - log_p)).sum(-1).mean()
    torch.testing.assert_close(divergence(Logits(kind="logits"), p_PV, q_PV), forward)
    torch.testing.assert_close(divergence(Logits(kind="logits", divergence="reverse"), p_PV, q_PV), reverse)
    mixed = divergence(Logits(kind="logits", divergence="mixed", mix=0.3), p_PV, q_PV)
    torch.testing.assert_close(mixed, 0.3 * reverse + 0.7 * forward)
    hot = divergence(Logits(kind="logits", temperature=2), 2 * p_PV, 2 * q_PV)
    torch.testing.assert_close(hot, forward)


def test_top_k_is_the_divergence_of_lumped_tokens_and_never_more_than_the_whole() -> None:
    p_PV, q_PV = _pair()
    full = divergence(Logits(kind="logits"), p_PV, q_PV)
    found = [divergence(Logits(kind="logits", top_k=k), p_PV, q_PV) for k in (1, 3, 8)]
    assert found == sorted(found) and found[-1] < full
    torch.testing.assert_close(divergence(Logits(kind="logits", top_k=11), p_PV, q_PV), full)


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_top_k_keeps_the_likeliest_of_the_original_and_lumps_the_rest_of_both(kind: Any) -> None:
    p_PV, q_PV = _pair()
    q_PV.requires_grad_()
    top_PK, lumped = p_PV.topk(3).indices, []
    for probability_PV in (p_PV.softmax(-1), q_PV.softmax(-1)):
        kept_PK = probability_PV.gather(1, top_PK)
        lumped.append(torch.cat([kept_PK, 1 - kept_PK.sum(1, keepdim=True)], dim=1))
    first, second = lumped if kind == "forward" else reversed(lumped)
    wanted = (first * (first / second).log()).sum(-1).mean()
    found = divergence(Logits(kind="logits", divergence=kind, top_k=3), p_PV, q_PV)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(each, q_PV)[0] for each in (found, wanted)))
