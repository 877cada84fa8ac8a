"""Schemes as texts."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import paramserver as ps
from paramserver.errors import ConfigurationError
from paramserver.scheme_text import KINDS, parse_scheme, split_schemes
from paramserver.schemes import Scheme
from paramserver.types import ASSIGNMENTS, ScaleLr
from paramserver.worker.schemes.chosen import scheme_of

counts = st.integers(1, 1000)
scales: st.SearchStrategy[ScaleLr] = st.sampled_from(["inverse", "sqrt", "none"])
bases: st.SearchStrategy[tuple[str, ps.Sync | ps.Async]] = st.sampled_from(
    [("sync", ps.Sync()), ("async", ps.Async())]
)


def pairs() -> st.SearchStrategy[tuple[str, Scheme]]:
    """Texts, and what each means."""
    return st.one_of(
        st.sampled_from(
            [
                ("sync", ps.Sync()),
                ("async", ps.Async()),
                ("allreduce", ps.AllReduce()),
                ("downpour", ps.Downpour()),
            ]
        ),
        counts.map(lambda n: (f"sync:backup={n}", ps.Sync(backup=n))),
        counts.map(lambda n: (f"sync:{n}", ps.Sync(backup=n))),
        st.tuples(counts, scales).map(
            lambda t: (f"stale:{t[0]},scale_lr={t[1]}", ps.Stale(t[0], t[1]))
        ),
        scales.map(lambda s: (f"async:scale_lr={s}", ps.Async(s))),
        counts.map(lambda n: (f"adaptive:max_bound={n}", ps.Adaptive(n))),
        st.tuples(counts, bases, st.booleans()).map(
            lambda t: (
                f"local:{t[0]},base={t[1][0]},dylu={str(t[2]).lower()}",
                ps.Local(t[0], base=t[1][1], dylu=t[2]),
            )
        ),
        st.tuples(counts, counts).map(
            lambda t: (f"downpour:n_push={t[0]},n_fetch={t[1]}", ps.Downpour(t[0], t[1]))
        ),
        st.just(("allreduce:gloo", ps.AllReduce("gloo"))),
    )


dealt = st.tuples(st.sampled_from([None, *ASSIGNMENTS]), st.booleans())


def ending(assign: str | None, balance: bool) -> str:
    return (f"/{assign}" if assign else "") + ("/balance" if balance else "")


@given(pairs(), dealt)
def test_a_text_means_what_it_says(pair: tuple[str, Scheme], how: tuple[str | None, bool]) -> None:
    text = pair[0] + ending(*how)
    found = parse_scheme(text)
    assert (found.text, found.scheme, found.assign, found.balance) == (text, pair[1], *how)


@given(st.lists(st.tuples(pairs(), dealt), min_size=1, max_size=6))
def test_a_list_is_split_where_schemes_begin(
    made: list[tuple[tuple[str, Scheme], tuple[str | None, bool]]],
) -> None:
    texts = list(dict.fromkeys(pair[0] + ending(*how) for pair, how in made))
    assert split_schemes(",".join(texts)) == texts


@given(st.text(max_size=30))
def test_any_other_text_is_a_clear_error(text: str) -> None:
    assume(not text.strip().startswith(tuple(KINDS)))
    with pytest.raises(ConfigurationError, match="must be one of sync"):
        parse_scheme(text)


def test_every_kind_is_tried() -> None:
    assert set(KINDS) == {"sync", "stale", "async", "adaptive", "local", "downpour", "allreduce"}


def test_a_script_keeps_its_own_scheme_unless_one_was_chosen() -> None:
    assert scheme_of(None, ps.Stale(2)) == ps.Stale(2)
    assert scheme_of(parse_scheme("async"), ps.Stale(2)) == ps.Async()


def test_local_with_an_outer_optimizer() -> None:
    chosen = parse_scheme("local:10,outer_lr=0.5,outer_momentum=0.9")
    assert chosen.scheme == ps.Local(10)
    scheme = scheme_of(chosen, ps.Sync())
    assert isinstance(scheme, ps.Local)
    assert scheme.steps == 10
    assert isinstance(scheme.outer, partial)
    assert scheme.outer.func is torch.optim.SGD
    assert scheme.outer.keywords == {"lr": 0.5, "momentum": 0.9, "nesterov": True}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stael:4", "'stael' must be one of sync, stale, async"),
        ("", "'' must be one of"),
        ("stale", "needs bound: write stale:BOUND"),
        ("stale:", "bound=: must be a number"),
        ("stale:four", "bound=four: must be a number"),
        ("stale:-1", "bound=-1: must be >= 0"),
        ("stale:4,bound=3", "bound is given twice"),
        ("async:4", "'4' is no argument of async; it has scale_lr"),
        ("async:scale_lr=half", "must be one of inverse, sqrt, polynomial, none"),
        ("sync:backups=1", "'backups=1' is no argument of sync; it has backup, deterministic"),
        ("sync:deterministic=no", "must be true or false"),
        ("local:10,base=stale", "must be one of sync, async"),
        ("local:10,outer_momentum=0.9", "outer_lr and outer_momentum go together"),
        ("local:10,compress=int2", "must be None or one of int8, int4"),
        ("sync/fair", "/round-robin, /random, /dynamic, and /balance"),
        ("sync/dynamic/random", "one of /round-robin"),
        ("sync/balance/balance", "one of /round-robin"),
    ],
)
def test_errors_say_what_is_allowed(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_scheme(text)
    assert said in str(caught.value)
    assert f"scheme {text!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [("sync,,async", "an empty one"), ("", "an empty one"), ("sync,async,sync", "given twice")],
)
def test_lists_that_cannot_be(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        split_schemes(text)
