"""Epochs of the job, and what of schedules survives."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from paramserver.errors import (
    ConfigurationError,
    ConnectionLostError,
    InvalidRequestError,
    MismatchError,
    UnsupportedError,
)
from paramserver.worker import states
from paramserver.worker.epochs import CAPTURE_S, Schedule, check_epochs
from paramserver.worker.session import Session
from tests.fakes import FakeScheduler, FakeTime, fake_session

LR = torch.optim.lr_scheduler


@pytest.fixture
def scheduler() -> FakeScheduler:
    return FakeScheduler()


@pytest.fixture
def session(scheduler: FakeScheduler) -> Iterator[Session]:
    opened = fake_session(scheduler)
    yield opened
    opened.stop()


class Worker:
    """An optimizer with a learning-rate schedule, and the epochs it runs through."""

    def __init__(self, session: Session, *, chief: bool = True, lr: float = 1.0) -> None:
        self.now = FakeTime()
        self.optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
        self.schedule = Schedule(
            session, lambda: chief, lambda: {"model": self.optimizer}, lambda: 17, self.now
        )

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


def test_epochs_count_from_the_one_the_job_is_in(
    session: Session, scheduler: FakeScheduler
) -> None:
    worker = Worker(session)
    assert list(worker.schedule.epochs(3, ())) == [0, 1, 2]
    assert [request.epoch for request in scheduler.heard("SaveSchedule")] == [0, 1, 2, 3]
    assert scheduler.heard("SaveSchedule")[0].clock == 17
    assert list(worker.schedule.epochs(5, ())) == [3, 4]
    assert list(worker.schedule.epochs(5, ())) == []


def test_only_the_chief_saves(session: Session, scheduler: FakeScheduler) -> None:
    list(Worker(session, chief=False).schedule.epochs(2, ()))
    assert scheduler.heard("SaveSchedule") == []


def test_a_joiner_goes_on_with_the_chiefs_rate(session: Session) -> None:
    chief = Worker(session)
    decay = LR.ExponentialLR(chief.optimizer, 0.5)
    for epoch in chief.schedule.epochs(10, (decay,)):
        if epoch == 3:
            break
        chief.optimizer.step()
        decay.step()
    joiner = Worker(session, chief=False)
    late = LR.ExponentialLR(joiner.optimizer, 0.5)
    first = next(joiner.schedule.epochs(10, (late,)))
    assert first == 3
    assert joiner.lr == chief.lr == 0.125
    joiner.optimizer.step()
    late.step()
    assert joiner.lr == 0.0625


def test_state_is_looked_at_within_an_epoch_but_not_at_every_batch(
    session: Session, scheduler: FakeScheduler
) -> None:
    worker = Worker(session)
    looks = []

    class Item:
        def state_dict(self) -> dict[str, Any]:
            looks.append(worker.now())
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    epochs = worker.schedule.epochs(2, (Item(),))
    next(epochs)
    for passed in (0.0, CAPTURE_S / 2, CAPTURE_S, CAPTURE_S):
        worker.now.now += passed
        worker.schedule.asked()
    assert looks == [0.0, 1.5 * CAPTURE_S, 2.5 * CAPTURE_S]
    assert len(scheduler.heard("SaveSchedule")) == 1  # the rest goes with the heartbeat
    session.beat()
    session.beat()
    assert len(scheduler.heard("SaveSchedule")) == 2


def test_no_epoch_no_capture(session: Session, scheduler: FakeScheduler) -> None:
    worker = Worker(session)
    worker.now.now = 100.0
    worker.schedule.asked()
    session.beat()
    assert scheduler.heard("SaveSchedule") == []


def test_a_scheduler_away_gets_it_later(session: Session, scheduler: FakeScheduler) -> None:
    def away(request: Any) -> Any:
        raise ConnectionLostError("away")

    worker = Worker(session)
    epochs = worker.schedule.epochs(2, ())
    scheduler.answers["SaveSchedule"] = away
    next(epochs)
    del scheduler.answers["SaveSchedule"]
    session.beat()
    assert scheduler.saved is not None
    assert scheduler.saved.epoch == 0


def test_a_forgotten_schedule_is_a_warning(session: Session) -> None:
    list(Worker(session).schedule.epochs(2, ()))
    joiner = Worker(session)
    LR.ExponentialLR(joiner.optimizer, 0.5)
    with pytest.warns(UserWarning, match=r"client\.epochs\(n, scheduler\)"):
        next(joiner.schedule.epochs(5, ()))


def test_as_many_objects_as_the_chief_had(session: Session) -> None:
    chief = Worker(session)
    list(chief.schedule.epochs(1, (LR.ExponentialLR(chief.optimizer, 0.5),)))
    with pytest.raises(MismatchError, match=r"got 0 objects .* the chief 1"):
        next(Worker(session).schedule.epochs(5, ()))


@pytest.mark.parametrize(
    "make",
    [
        lambda o: LR.StepLR(o, 2),
        lambda o: LR.MultiStepLR(o, [1, 1, 3]),
        lambda o: LR.LambdaLR(o, lambda e: 1 / (1 + e)),
        lambda o: LR.ReduceLROnPlateau(o),
        lambda o: LR.CosineAnnealingWarmRestarts(o, 3),
        lambda o: LR.SequentialLR(o, [LR.ConstantLR(o), LR.ExponentialLR(o, 0.9)], [2]),
        lambda o: LR.ChainedScheduler([LR.ConstantLR(o), LR.ExponentialLR(o, 0.9)]),
        lambda o: torch.amp.GradScaler("cpu"),
    ],
)
def test_states_of_torch_make_the_round_trip(make: Any) -> None:
    item = make(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))
    again = states.loads(states.dumps(item.state_dict()))
    assert again == item.state_dict()
    item.load_state_dict(again)


# Few and small: the rules are the same at any depth.
SIMPLE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.text() | st.integers()


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.tuples(inner, inner)
    )


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), st.recursive(SIMPLE, containers, max_leaves=8), max_size=3))
def test_any_json_makes_the_round_trip(state: dict[str, Any]) -> None:
    assert states.loads(states.dumps(state)) == state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_make_the_round_trip(dtype: torch.dtype) -> None:
    for tensor in (torch.tensor([[1.5, 0.0]]).to(dtype), torch.tensor(1).to(dtype)):
        again = states.loads(states.dumps({"t": tensor}))["t"]
        assert torch.equal(again, tensor)
        assert again.dtype == dtype
    special = states.loads(states.dumps({"t": torch.tensor([math.nan, math.inf])}))["t"]
    assert math.isnan(special[0])
    assert special[1] == math.inf


def test_nan_and_counters_keep_their_kind() -> None:
    again = states.loads(states.dumps({"n": math.nan, "c": Counter({3: 2})}))
    assert math.isnan(again["n"])
    assert again["c"] == Counter({3: 2})
    assert isinstance(again["c"], Counter)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"f": [print]}, r"state\.f\[0\] is a builtins\.builtin_function"),
        ({"t": torch.zeros(2, dtype=torch.complex64)}, "complex64"),
        ({"t": torch.zeros(1_000_000)}, r"state\.t has 2000000 bytes .* at most"),
        ({"t": "x" * 1_100_000}, "at most"),
    ],
)
def test_what_cannot_travel(value: Any, why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        states.dumps(value)


@pytest.mark.parametrize("text", ["", "[]", '{"a": {"$what": 1}}', '{"a": {"$tensor": 1}}'])
def test_texts_that_are_no_states(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="not a state"):
        states.loads(text)


def test_arguments_that_cannot_work() -> None:
    with pytest.raises(ConfigurationError, match=">= 0"):
        check_epochs(-1, ())
    with pytest.raises(ConfigurationError, match="state_dict"):
        check_epochs(1, (object(),))
