"""The low-rank solution against the published dense formula."""

import pytest
import torch

from neuroscope import InvalidInput
from neuroscope.editing.factors import balanced
from neuroscope.editing.solving import solve

WIDTH, OUT = 48, 32


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def drawn(rng, *shape):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def dense(weight, keys, targets, penalty, kept=None, kept_weight=1.0):
    """W' = (W Tᵀ… written as published: solve (XᵀX + λI) for (XᵀT Wᵀ + λWᵀ), with preserved rows as further pairs."""
    if kept is not None:
        keys, targets = (torch.cat([each, kept * kept_weight**0.5]) for each in (keys, targets))
    gram = keys.T @ keys + penalty * torch.eye(keys.shape[1], dtype=keys.dtype)
    return (torch.linalg.inv(gram) @ (keys.T @ targets @ weight.T + penalty * weight.T)).T


def folded(weight, solution):
    return weight + weight @ solution.write.T.to(weight) @ solution.read.to(weight)


@pytest.mark.parametrize("count", [1, 4, 47, 48, 130])
@pytest.mark.parametrize("kept", [0, 3, 60])
def test_it_equals_the_dense_formula_on_any_weights(rng, count, kept):
    keys, targets, weight, stay = drawn(rng, count, WIDTH), drawn(rng, count, WIDTH), drawn(rng, OUT, WIDTH), drawn(rng, kept, WIDTH)
    solution = solve(keys, targets, stay, ridge=0.01, weight=2.0)
    assert solution.penalty == pytest.approx(0.01 * float((keys**2).sum(dim=1).mean()))
    expected = dense(weight, keys, targets, solution.penalty, stay, 2.0)
    torch.testing.assert_close(folded(weight, solution), expected, rtol=0, atol=1e-10 * float(expected.norm()))
    assert len(solution.read) == len(solution.write) == min(count, WIDTH)


def test_badly_conditioned_keys_break_the_published_float32_form_and_not_this_one(rng):
    """Keys as CLIP makes them: long (27.7) and nearly parallel (cosine 0.99)."""
    common = torch.nn.functional.normalize(drawn(rng, 1, 768), dim=1)
    apart = torch.nn.functional.normalize(drawn(rng, 4, 768), dim=1)
    keys = 27.7 * torch.nn.functional.normalize(common + 0.1 * apart, dim=1)
    targets = keys.roll(1, 0) + 5 * torch.nn.functional.normalize(drawn(rng, 4, 768), dim=1)
    weight = drawn(rng, 64, 768) / 768**0.5
    penalty = 0.001
    exact = dense(weight, keys, targets, penalty)
    change = float((exact - weight).norm())
    published = dense(weight.float(), keys.float(), targets.float(), penalty).double()
    solution = solve(keys, targets, keys[:0], ridge=penalty / float((keys**2).sum(dim=1).mean()), weight=1.0)
    stored = solution._replace(read=solution.read.float(), write=solution.write.float())
    assert float((published - exact).norm()) / change > 0.05
    assert float((folded(weight, stored) - exact).norm()) / change < 1e-5


def test_nothing_outside_the_span_of_the_keys_moves(rng):
    keys, targets = drawn(rng, 5, WIDTH), drawn(rng, 5, WIDTH)
    solution = solve(keys, targets, keys[:0], ridge=0.1, weight=1.0)
    basis = torch.linalg.qr(keys.T).Q
    other = drawn(rng, 20, WIDTH)
    other = other - other @ basis @ basis.T
    assert float((other @ solution.read.T @ solution.write).norm(dim=1).max()) < 1e-12


def test_without_a_ridge_keys_reach_their_targets_and_kept_vectors_stay(rng):
    keys, targets, kept = drawn(rng, 5, WIDTH), drawn(rng, 5, WIDTH), drawn(rng, 6, WIDTH)
    solution = solve(keys, targets, kept, ridge=0.0, weight=1.0)
    torch.testing.assert_close(keys + keys @ solution.read.T @ solution.write, targets)
    assert float((kept @ solution.read.T @ solution.write).norm()) < 1e-10


def test_a_larger_weight_keeps_better(rng):
    keys, targets, kept = drawn(rng, 5, WIDTH), drawn(rng, 5, WIDTH), drawn(rng, 60, WIDTH)
    moves = []
    for weight in (0.1, 1.0, 10.0):
        solution = solve(keys, targets, kept, ridge=0.01, weight=weight)
        moves.append(float((kept @ solution.read.T @ solution.write).norm()))
    assert moves[0] > moves[1] > moves[2]


def test_keys_that_depend_on_each_other_need_a_ridge(rng):
    keys, targets = drawn(rng, 1, WIDTH).repeat(2, 1), drawn(rng, 2, WIDTH)
    with pytest.raises(InvalidInput, match=r"the keys depend on each other, so without a ridge .* give a ridge, such as 0.01"):
        solve(keys, targets, keys[:0], ridge=0.0, weight=1.0)
    assert torch.isfinite(solve(keys, targets, keys[:0], ridge=1e-6, weight=1.0).read).all()


def test_nothing_to_move_is_an_error(rng):
    keys = drawn(rng, 3, WIDTH)
    with pytest.raises(InvalidInput, match="read the same at the edited tokens; give prompts that differ"):
        solve(keys, keys, keys[:0], ridge=0.01, weight=1.0)


def test_balanced_factors_multiply_to_the_same_and_share_the_size(rng):
    left, right = 1e6 * drawn(rng, 40, 3), 1e-6 * drawn(rng, 3, 30)
    one, other = balanced(torch.cat([left, left], dim=1), torch.cat([right, right]))
    assert one.shape == (40, 3)
    torch.testing.assert_close(one @ other, 2 * left @ right)
    assert float(one.norm()) == pytest.approx(float(other.norm()))
