"""Twenty seeded schedules of faults on real processes; ``make chaos`` runs two hundred."""

from __future__ import annotations

import pytest

from tests.chaos.__main__ import broken
from tests.chaos.plan import Means, draw

MEANS = Means(scheduler=True, durabilities=("memory", "wal", "replica"))


def test_a_plan_is_its_seeds() -> None:
    for seed in range(300):
        plan = draw(seed, MEANS)
        assert draw(seed, MEANS) == plan
        afters = [fault.after for fault in plan.faults]
        assert afters == sorted(afters)
        assert plan.durability != "replica" or plan.servers >= 2
    kinds = {(f.kind, f.target.split("-")[0]) for s in range(300) for f in draw(s, MEANS).faults}
    assert {("kill", "worker"), ("kill", "ps"), ("kill", "scheduler"), ("hole", "ps")} <= kinds


def test_only_what_is_survived_is_killed() -> None:
    means = Means(scheduler=False, durabilities=("memory",))
    for seed in range(300):
        for fault in draw(seed, means).faults:
            assert fault.kind != "kill" or fault.target.startswith("worker")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(20))
def test_a_seed_keeps_every_promise(seed: int) -> None:
    assert not broken(seed), f"python -m tests.chaos --seed {seed}"
