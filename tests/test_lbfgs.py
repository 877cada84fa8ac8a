"""What the coordinator of L-BFGS decides, from scalars alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramserver.core import lbfgs
from paramserver.core.lbfgs import Products, Progress, Settings, g, s, y
from paramserver.errors import ConfigurationError, InvalidRequestError

SETTINGS = Settings(size=100)
numbers = st.floats(allow_nan=False, width=64)


@pytest.mark.parametrize("history", [1, 3, 10])
def test_the_two_loop_on_products_is_the_two_loop_on_vectors(history: int) -> None:
    torch.manual_seed(0)
    root = torch.randn(30, 30, dtype=torch.float64)
    hessian = root @ root.T + torch.eye(30, dtype=torch.float64)
    steps = torch.randn(history, 30, dtype=torch.float64)
    vectors = {g(99): torch.randn(30, dtype=torch.float64)}
    pairs = tuple(range(history))
    for k in pairs:
        vectors[s(k)], vectors[y(k)] = steps[k], hessian @ steps[k]
    products = Products()
    wanted = products.missing(lbfgs.basis(pairs, 99))
    products.put(wanted, [float(vectors[a] @ vectors[b]) for a, b in wanted])
    coefficients = lbfgs.two_loop(products, pairs, 99)
    made = torch.stack([c * vectors[name] for name, c in coefficients.items()]).sum(0)

    q, alpha = -vectors[g(99)].clone(), {}
    for k in reversed(pairs):
        alpha[k] = (vectors[s(k)] @ q) / (vectors[s(k)] @ vectors[y(k)])
        q -= alpha[k] * vectors[y(k)]
    newest = pairs[-1]
    q *= (vectors[s(newest)] @ vectors[y(newest)]) / vectors[y(newest)].square().sum()
    for k in pairs:
        q += (alpha[k] - (vectors[y(k)] @ q) / (vectors[s(k)] @ vectors[y(k)])) * vectors[s(k)]
    assert torch.allclose(made, q, rtol=1e-10, atol=1e-12)
    slope = lbfgs.slope_of(products, coefficients, 99)
    assert slope == pytest.approx(float(vectors[g(99)] @ q), rel=1e-10)


def test_only_products_with_new_vectors_are_asked_for() -> None:
    products, m = Products(), 10
    pairs = tuple(range(m))
    first = products.missing(lbfgs.basis(pairs, m))
    assert len(first) == (2 * m + 1) * (m + 1)
    products.put(first, [1.0] * len(first))
    names = lbfgs.basis((*pairs, m + 1)[1:], m + 1)
    products.keep(names)
    assert 0 < len(products.missing(names)) <= 6 * m + 3


@given(st.lists(numbers, max_size=5), numbers, st.integers(0, 1 << 40))
def test_progress_survives_the_wire_to_the_bit(
    losses: list[float], slope: float, evaluation: int
) -> None:
    made = Progress(SETTINGS, evaluation, losses=tuple(losses), slope=slope, pairs=(1, 2))
    assert Progress.parse(made.text()) == made


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": {"size": 0}}', "null"])
def test_garbage_is_no_progress(text: str) -> None:
    with pytest.raises((InvalidRequestError, ConfigurationError)):
        Progress.parse(text)


def searching(**changed: float) -> Progress:
    at = Progress(SETTINGS, 1, 0, (1.0,), 1.0, 0, -1.0, step=1.0)
    return replace(at, **changed)  # type: ignore[arg-type]


def test_a_point_that_is_lower_and_flatter_is_accepted() -> None:
    assert lbfgs.judge(searching(), 0.5, -0.5) is None


@pytest.mark.parametrize("loss", [1.0, math.inf, math.nan])
def test_a_point_that_is_not_lower_halves_the_step(loss: float) -> None:
    trial = lbfgs.judge(searching(), loss, 1.0)
    assert trial is not None
    assert (trial.step, trial.high, trial.trials) == (0.5, 1.0, 1)


def test_a_point_that_is_as_steep_doubles_the_step() -> None:
    trial = lbfgs.judge(searching(), 0.5, -0.95)
    assert trial is not None
    assert (trial.step, trial.low) == (2.0, 1.0)
    bracketed = lbfgs.judge(replace(trial, high=4.0), 0.4, -0.95)
    assert bracketed is not None
    assert bracketed.step == 3.0


def test_a_search_ends() -> None:
    assert not lbfgs.exhausted(searching())
    assert lbfgs.exhausted(searching(trials=lbfgs.MAX_TRIALS))
    assert lbfgs.exhausted(searching(low=1.0, high=1.0))
    assert lbfgs.exhausted(searching(step=math.inf))


def test_why_it_ends() -> None:
    going = replace(searching(), losses=(3.0, 2.0, 1.0), norm=1.0)
    assert lbfgs.reached(going) == going
    assert "gtol=1e-06" in lbfgs.reached(replace(going, norm=1e-7)).message
    assert lbfgs.reached(replace(going, losses=(2.0, 2.0))).converged
    few = replace(going, settings=replace(SETTINGS, max_iter=2))
    assert lbfgs.reached(few).ended
    assert not lbfgs.reached(few).converged


def test_vectors_of_no_use_are_dropped() -> None:
    at = replace(searching(), evaluation=7, at=5, direction=6, pairs=(3, 5))
    assert at.kept() == {"x/7", "sum/7", "x/5", "g/5", "d/6", "s/3", "y/3", "s/5", "y/5"}
    assert replace(at, message="over").kept() == set()


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"history": 0}, {"max_iter": 0}, {"l2": -1.0}, {"gtol": math.nan}]
)
def test_settings_that_cannot_work(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        replace(SETTINGS, **wrong)  # type: ignore[arg-type]


def test_settings_that_differ_are_named() -> None:
    assert SETTINGS.difference(SETTINGS) == ""
    assert SETTINGS.difference(replace(SETTINGS, l2=0.5)) == "l2 is 0.5, not 0.0"
