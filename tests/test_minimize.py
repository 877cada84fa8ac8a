"""``ps.minimize``: the optimum, the very path of the plain method, and what may go wrong."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps
from paramserver.config import SnapshotConfig
from paramserver.core import lbfgs
from paramserver.errors import (
    ConfigurationError,
    InvalidRequestError,
    JobFailedError,
    MismatchError,
    RolledBackError,
    UnsupportedError,
    UsageError,
)
from paramserver.snapshot_files import complete, open_store
from tests.cluster import Cluster, cluster, in_threads, until

L2 = 1e-3


def breast_cancer() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    rows = torch.tensor(x, dtype=torch.float64)
    return (rows - rows.mean(0)) / rows.std(0), torch.tensor(y, dtype=torch.float64)


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float64) / 16, torch.tensor(y)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Zeros, in float64."""
    model = nn.Linear(inputs, outputs, dtype=torch.float64)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def logistic(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """One loss per sample."""

    def losses(x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(x).squeeze(1), y, reduction="none")

    return losses


def softmax(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean of the losses."""
    return lambda x, y: F.cross_entropy(model(x), y)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def objective(
    model: nn.Module, fn: Callable[..., Tensor], data: Sequence[Tensor]
) -> Callable[[Tensor], tuple[float, Tensor]]:
    """Loss and gradient of the whole data set at flat parameters, in one process."""

    def at(w: Tensor) -> tuple[float, Tensor]:
        nn.utils.vector_to_parameters(w, model.parameters())
        model.zero_grad()
        loss = fn(*data).mean() + L2 / 2 * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return float(loss.detach()), torch.cat([g.reshape(-1) for g in gradients])

    return at


def scipy_optimum(at: Callable[[Tensor], tuple[float, Tensor]], size: int) -> float:
    from scipy.optimize import minimize

    def function(w: Any) -> tuple[float, Any]:
        loss, gradient = at(torch.tensor(w))
        return loss, gradient.numpy()

    options = {"gtol": 1e-10, "ftol": 1e-16, "maxiter": 5000, "maxfun": 10_000, "maxcor": 20}
    found = minimize(function, [0.0] * size, jac=True, method="L-BFGS-B", options=options)
    return float(found.fun)


def plain_two_loop(
    at: Callable[[Tensor], tuple[float, Tensor]], w: Tensor, iterations: int, history: int = 10
) -> list[float]:
    """Losses of L-BFGS on vectors in one process, with the same line search."""
    loss, g = at(w)
    losses, pairs = [loss], list[tuple[Tensor, Tensor]]()
    while len(losses) <= iterations:
        q, alphas = -g.clone(), list[Tensor]()
        for s, y in reversed(pairs):
            alphas.append((s @ q) / (s @ y))
            q -= alphas[-1] * y
        if pairs:
            s, y = pairs[-1]
            q *= (s @ y) / (y @ y)
        for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
            q += (alpha - (y @ q) / (s @ y)) * s
        step = 1.0 if pairs else min(1.0, 1.0 / float(g.norm()))
        trial: lbfgs.Progress | None = lbfgs.Progress(
            lbfgs.Settings(1), losses=(loss,), slope=float(g @ q), step=step
        )
        while trial is not None:
            step = trial.step
            new_loss, new_g = at(w + step * q)
            trial = lbfgs.judge(trial, new_loss, float(new_g @ q))
        s, y = step * q, new_g - g
        if s @ y > 1e-10 * (y @ y):
            pairs = [*pairs, (s, y)][-history:]
        w, g, loss = w + step * q, new_g, new_loss
        losses.append(loss)
    return losses


def minimized(
    c: Cluster, data: Sequence[Tensor], model: Callable[[], nn.Module], loss: Any, **options: Any
) -> list[tuple[ps.MinimizeResult, Tensor]]:
    """Results and parameters of all workers."""

    def work(client: ps.Client) -> tuple[ps.MinimizeResult, Tensor]:
        mine = model()
        dataset = TensorDataset(*data)
        result = ps.minimize(loss(mine), dataset, model=mine, client=client, l2=L2, **options)
        return result, flat(mine)

    return c.workers(work)


@pytest.mark.parametrize(("servers", "workers"), [(1, 1), (2, 3)])
def test_breast_cancer_reaches_the_optimum_of_scipy(servers: int, workers: int) -> None:
    data, model = breast_cancer(), linear(30, 1)
    at = objective(model, logistic(model), data)
    best = scipy_optimum(at, 31)
    with cluster(servers, workers) as c:
        found = minimized(c, data, lambda: linear(30, 1), logistic, portion=60)
        assert {q.unpushed for q in c.scheduler.state.data} == {0}
        assert all(not s.vectors for v in c.servers for s in v.vectors._spaces.values())
    for result, parameters in found:
        assert result.converged
        assert abs(result.loss - best) < 1e-8
        assert at(parameters)[0] == pytest.approx(result.loss, abs=1e-14)
        assert torch.equal(parameters, found[0][1])
        assert result.iterations == len(result.losses) - 1 < result.evaluations


@pytest.mark.slow
def test_digits_reach_the_optimum_of_scipy() -> None:
    data, model = digits(), linear(64, 10)
    best = scipy_optimum(objective(model, softmax(model), data), 650)
    with cluster(2, 2) as c:
        found = minimized(c, data, lambda: linear(64, 10), softmax, max_iter=300, portion=300)
    for result, _ in found:
        assert result.converged, result.message
        assert abs(result.loss - best) < 1e-8


@pytest.mark.parametrize("servers", [1, 2, 4])
def test_the_losses_are_those_of_the_plain_two_loop(servers: int) -> None:
    data, model = digits(), linear(64, 10)
    wanted = plain_two_loop(
        objective(model, softmax(model), data), torch.zeros(650, dtype=torch.float64), 20
    )
    with cluster(servers, 2) as c:
        found = minimized(c, data, lambda: linear(64, 10), softmax, max_iter=20, portion=200)
    assert found[0][0] == found[1][0]
    assert not found[0][0].converged
    assert "max_iter=20" in found[0][0].message
    assert found[0][0].losses == pytest.approx(wanted, rel=0, abs=1e-12)


def watch(c: Cluster, see: Callable[[Any, Any], None]) -> None:
    """Shows every operation on vectors, and its reply."""

    def space_of(group: Any, of: Callable[[Any], Any]) -> Any:
        space = of(group)
        if "operate" not in vars(space):
            operate = space.operate

            async def watched(worker: Any, request: Any, check: Any) -> Any:
                reply = await operate(worker, request, check)
                see(request, reply)
                return reply

            space.operate = watched
        return space

    for service in c.servers:
        service.vectors.of = partial(space_of, of=service.vectors.of)


def scalars(request: Any) -> int:
    """Numbers that one operation moves."""
    return len(request.dots) + len(request.tallies) + sum(len(lin.terms) for lin in request.lin)


@pytest.mark.parametrize("inputs", [5, 30])
def test_scalars_of_an_iteration_do_not_grow_with_the_parameters(inputs: int) -> None:
    x, y = breast_cancer()
    counts: list[int] = []
    with cluster(1, 1) as c:
        watch(c, lambda request, _: counts.append(scalars(request)))
        ((result, _),) = minimized(
            c, (x[:, :inputs], y), lambda: linear(inputs, 1), logistic, max_iter=20
        )
    assert result.iterations == 20
    m = 10
    per_iteration = (6 * m + 3) + (2 * m + 1) + 12 * result.evaluations / result.iterations
    print(f"{sum(counts) / result.iterations:.0f} numbers an iteration")
    assert sum(counts) <= per_iteration * (result.iterations + 1)


def test_a_straggler_is_backed_up() -> None:
    """worker-1 stands still in its first portion until worker-0 has reached the optimum."""
    data = breast_cancer()
    stuck, over = threading.Event(), threading.Event()

    def work(client: ps.Client) -> ps.MinimizeResult:
        model = linear(30, 1)
        losses = logistic(model)

        def fn(x: Tensor, y: Tensor) -> Tensor:
            if client.rank == 1:
                stuck.set()
                assert over.wait(60)
            else:
                assert stuck.wait(60)  # worker-1 has a portion, too
            return losses(x, y)

        result = ps.minimize(fn, TensorDataset(*data), model=model, client=client, l2=L2)
        over.set()
        return result

    with cluster(1, 2) as c:
        first, second = c.workers(work)
    assert first == second
    assert first.converged


def test_another_group_of_the_same_model_does_not_get_in_between() -> None:
    """Whenever a worker has waited, its other groups are pulled anew, into the same parameters."""
    data = breast_cancer()

    def work(client: ps.Client, twice: bool) -> ps.MinimizeResult:
        model = linear(30, 1)
        if twice:
            client.optimizer(model, torch.optim.SGD, lr=1.0)
        dataset = TensorDataset(*data)
        return ps.minimize(
            logistic(model), dataset, model=model, client=client, l2=L2, portion=200, max_iter=12
        )

    found = []
    for twice in (True, False):
        with cluster(1, 2) as c:
            found += c.workers(partial(work, twice=twice))
    for result in found:
        assert result.iterations == 12
        assert result.losses[:10] == pytest.approx(found[0].losses[:10], rel=0, abs=1e-12)


def test_replicas_stand_by_meanwhile() -> None:
    """The coordinator's thread waits beside the loop, which may be working: only one stands in."""
    data = breast_cancer()

    def work(client: ps.Client) -> float:
        other, model = linear(30, 1), linear(30, 1)
        client.optimizer(other, torch.optim.SGD, lr=1.0, consistency=ps.AllReduce())
        dataset = TensorDataset(*data)
        return ps.minimize(logistic(model), dataset, model=model, client=client, l2=L2).loss

    with cluster(1, 3) as c:
        assert len(set(c.workers(work))) == 1


def test_training_afterwards_begins_with_its_first_epoch() -> None:
    """Evaluations are passes over the data as well, but no epochs of the job."""
    x, y = breast_cancer()

    def work(client: ps.Client) -> int:
        model, samples = linear(30, 1), 0
        dataset = TensorDataset(x, y)
        ps.minimize(logistic(model), dataset, model=model, client=client, l2=L2, max_iter=3)
        loader = client.loader(dataset, batch_size=50)
        for _ in client.epochs(2):
            samples += sum(len(inputs) for inputs, _ in loader)
        return samples

    with cluster(1, 2) as c:
        assert sum(c.workers(work)) == 2 * len(x)


def test_a_worker_may_come_later() -> None:
    """It takes part from the evaluation that is under way."""
    begun, came = threading.Event(), threading.Event()
    data = breast_cancer()

    def one(c: Cluster, rank: int) -> ps.MinimizeResult:
        calls: list[int] = []
        if rank:
            assert begun.wait(60)
        with c.connect(f"worker-{rank}") as client:
            model = linear(30, 1)

            def fn(x: Tensor, y: Tensor) -> Tensor:
                calls.append(len(x))
                if rank:
                    came.set()
                elif len(calls) > 50:
                    begun.set()
                    assert came.wait(60)
                return logistic(model)(x, y)

            result = ps.minimize(fn, TensorDataset(*data), model=model, client=client, l2=L2)
            assert calls
            return result

    with cluster(1, 1) as c:
        first, second = in_threads([partial(one, c, 0), partial(one, c, 1)])
    assert first == second
    assert first.converged


def test_without_backups_a_portion_has_one_holder() -> None:
    with cluster(1, 2) as c:
        found = minimized(
            c, breast_cancer(), lambda: linear(30, 1), logistic, backups=False, max_iter=5
        )
        (queue,) = c.scheduler.state.data
        assert (queue.spec.backups, queue.spec.shard_size) == (False, 24)
    assert found[0][0].iterations == 5


def test_a_point_without_a_loss_is_stepped_back_from() -> None:
    """sqrt(1 - |w|) is no number beyond 1, where the first trial lies."""
    x = torch.zeros(7, 1, dtype=torch.float64)

    def work(client: ps.Client) -> tuple[ps.MinimizeResult, float]:
        w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def fn(x: Tensor) -> Tensor:
            return 1 - 3 * torch.sqrt(1 - w * w) + (w - 0.9) ** 2 + 0 * x[:, 0] - 4 * w

        result = ps.minimize(fn, TensorDataset(x), model=[("w", w)], client=client)
        return result, float(w.detach())

    with cluster(1, 1) as c:
        ((result, w),) = c.workers(work)
    assert result.converged
    assert 0.5 < w < 1


def test_a_start_without_a_loss_is_said() -> None:
    def work(client: ps.Client) -> ps.MinimizeResult:
        model = linear(1, 1)
        fn = lambda x: model(x).squeeze(1).log()  # noqa: E731
        data = TensorDataset(torch.ones(5, 1, dtype=torch.float64))
        return ps.minimize(fn, data, model=model, client=client)

    with cluster(1, 1) as c:
        (result,) = c.workers(work)
    assert not result.converged
    assert "first loss is inf" in result.message


def test_float32_ends_where_its_precision_does() -> None:
    x, y = breast_cancer()

    def work(client: ps.Client) -> ps.MinimizeResult:
        model = linear(30, 1).float()
        data = TensorDataset(x.float(), y.float())
        return ps.minimize(
            logistic(model), data, model=model, client=client, l2=L2, gtol=0.0, portion=569
        )

    with cluster(1, 1) as c:
        (result,) = c.workers(work)
    model = linear(30, 1)
    best = scipy_optimum(objective(model, logistic(model), (x, y)), 31)
    assert abs(result.loss - best) < 1e-5
    assert result.message


def test_a_module_may_be_its_own_loss_and_bring_its_own_client() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.center = nn.Parameter(torch.zeros(2, dtype=torch.float64))
            self.fixed = nn.Parameter(torch.ones(1, dtype=torch.float64), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return (x - self.center).square().sum(1) * self.fixed

    x = torch.arange(40, dtype=torch.float64).view(20, 2)
    model = Mean()
    result = ps.minimize(model, TensorDataset(x), batch_size=3)
    assert torch.allclose(model.center.detach(), x.mean(0), atol=1e-6)
    assert result.converged


def test_fn_that_raises_ends_it_everywhere() -> None:
    begun = threading.Event()

    def work(client: ps.Client) -> str:
        model = linear(30, 1)

        def fn(x: Tensor, y: Tensor) -> Tensor:
            if client.rank == 1:
                begun.set()
                raise ValueError("told to go wrong")
            assert begun.wait(60)  # worker-1 has a portion, too
            return logistic(model)(x, y)

        with pytest.raises((ValueError, JobFailedError)) as caught:
            ps.minimize(fn, TensorDataset(*breast_cancer()), model=model, client=client)
        return str(caught.value)

    with cluster(1, 2) as c:
        first, second = c.workers(work)
    assert "worker-1: ValueError: told to go wrong" in first
    assert second == "told to go wrong"


def test_workers_that_disagree_hear_in_what() -> None:
    def work(client: ps.Client, **options: Any) -> str:
        data = TensorDataset(*breast_cancer())
        model = linear(30, 1)
        try:
            ps.minimize(logistic(model), data, model=model, client=client, **options)
        except (MismatchError, JobFailedError, InvalidRequestError) as error:
            return str(error)
        return ""

    with cluster(1, 2) as c:
        said = c.workers(lambda client: work(client, l2=float(client.rank)))
        assert any("l2 is" in text for text in said)
    with cluster(1, 2) as c:
        said = c.workers(lambda client: work(client, portion=10 + client.rank, max_iter=3))
        assert any("shard_size is" in text for text in said)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "newton"}, ConfigurationError, "must be one of l-bfgs"),
        ({"model": None}, ConfigurationError, "model=None"),
        ({"history": 0}, ConfigurationError, "history=0"),
        ({"batch_size": 0}, ConfigurationError, "batch_size=0"),
        ({"portion": 0}, ConfigurationError, "shard_size=0"),
        ({"fn": lambda x, y: torch.zeros(())}, ConfigurationError, "does not depend"),
        ({"model": nn.Sequential(nn.Dropout(), nn.Linear(30, 1))}, UnsupportedError, "Dropout"),
        ({"model": nn.BatchNorm1d(30)}, UnsupportedError, "eval"),
    ],
)
def test_what_cannot_work_is_said(
    options: dict[str, Any], error: type[Exception], match: str
) -> None:
    model = linear(30, 1)
    data = TensorDataset(*breast_cancer())
    with cluster(1, 1) as c, c.connect("worker-0") as client:
        given = {"fn": logistic(model), "model": model, "client": client, **options}
        with pytest.raises(error, match=match):
            ps.minimize(dataset=data, **given)


def test_losses_of_another_shape_are_refused_and_a_name_serves_once() -> None:
    model = linear(30, 1)
    data = TensorDataset(*breast_cancer())
    with cluster(1, 1) as c, c.connect("worker-0") as client:
        with pytest.raises(ConfigurationError, match=r"shape \(48, 1\) for a batch of 48"):
            ps.minimize(lambda x, y: model(x), data, model=model, client=client)
        with pytest.raises(UsageError, match="another group name"):
            ps.minimize(lambda x, y: model(x), data, model=model, client=client)
        again = ps.minimize(
            logistic(model), data, model=model, client=client, max_iter=2, name="two"
        )
        assert again.iterations == 2


# Losses of workers


def _work(address: str, name: str, told: Any, evaluation: int) -> None:
    """A worker that says when it is in that evaluation, and then waits to be killed."""
    torch.set_num_threads(1)
    with ps.connect(address, name=name) as client:
        model = linear(30, 1)
        losses, first = logistic(model), flat(model)
        points: list[Tensor] = []

        def fn(x: Tensor, y: Tensor) -> Tensor:
            if not points or not torch.equal(points[-1], flat(model)):
                points.append(flat(model))
            if len(points) > evaluation:
                told.put(len(points))
                threading.Event().wait()
            return losses(x, y)

        assert not first.any()
        ps.minimize(fn, TensorDataset(*breast_cancer()), model=model, client=client, l2=L2)


@pytest.mark.slow
@pytest.mark.parametrize("doomed_rank", [0, 2], ids=["coordinator", "worker"])
def test_a_worker_killed_in_mid_iteration(doomed_rank: int) -> None:
    """The same optimum; every sample of every evaluation counted once on every server."""
    data, model = breast_cancer(), linear(30, 1)
    best = scipy_optimum(objective(model, logistic(model), data), 31)
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    tallies: list[int] = []
    with cluster(2, 3, lease_s=2.0) as c:
        watch(c, lambda _, reply: tallies.extend(tally.samples for tally in reply.tallies))
        name = f"worker-{doomed_rank}"
        doomed = context.Process(target=_work, args=(c.address, name, told, 4), daemon=True)
        doomed.start()

        def one(rank: int) -> tuple[ps.MinimizeResult, Tensor]:
            with c.connect(f"worker-{rank}", timeout=60.0) as client:
                if doomed_rank == 0:  # it is to be the first there, and so the coordinator
                    until(lambda: c.scheduler.offices.get("minimize").holder == name, 60)
                mine = linear(30, 1)
                result = ps.minimize(
                    logistic(mine), TensorDataset(*data), model=mine, client=client, l2=L2
                )
                return result, flat(mine)

        def kill() -> None:
            told.get(timeout=60)
            os.kill(doomed.pid or 0, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        others = [rank for rank in range(3) if rank != doomed_rank]
        (first, w), (second, _) = in_threads([partial(one, rank) for rank in others])
        killer.join(60)
        doomed.join(10)
        assert doomed.exitcode == -signal.SIGKILL
        if doomed_rank == 0:
            assert c.scheduler.offices.get("minimize").holder != name
    assert first == second
    assert first.converged
    assert abs(first.loss - best) < 1e-8
    assert objective(model, logistic(model), data)(w)[0] == pytest.approx(first.loss, abs=1e-14)
    assert len(tallies) >= 2 * first.evaluations
    assert set(tallies) == {569}


# Snapshots


class Halted:
    """Minimizations of the same data by two workers, the first of which ends at a snapshot.

    Attributes:
        points: evaluations that worker-0 took part in, in this cluster.
        gate: the tenth waits for it.
    """

    def __init__(self, c: Cluster, halt: int = 0) -> None:
        self.c, self.halt = c, halt
        self.data = [values[:200] for values in breast_cancer()]
        self.points: list[Tensor] = []
        self.gate: threading.Event | None = None

    def __call__(self, client: ps.Client, **options: Any) -> tuple[ps.MinimizeResult, Tensor]:
        model = linear(30, 1)
        losses = logistic(model)

        def fn(x: Tensor, y: Tensor) -> Tensor:
            now = flat(model)
            if self.gate and self.c.scheduler.offices.get("minimize").number > 9:
                assert self.gate.wait(60)
            if client.rank == 0 and not (self.points and torch.equal(self.points[-1], now)):
                self.points.append(now)
                if len(self.points) == self.halt:
                    self.c.snapshot("half")
                    raise KeyboardInterrupt
            return losses(x, y)

        options = {"l2": L2, "portion": 100, "max_iter": 14, **options}
        result = ps.minimize(fn, TensorDataset(*self.data), model=model, client=client, **options)
        return result, flat(model)


@pytest.mark.parametrize("backups", [True, False])
def test_a_minimization_goes_on_from_a_snapshot(tmp_path: Path, backups: bool) -> None:
    """On other servers, with the history as it was: the same optimum, one evaluation repeated."""
    where = SnapshotConfig(directory=str(tmp_path))
    with cluster(2, 1, snapshots=where) as c, c.connect("worker-0") as client:
        before = Halted(c, halt=8)
        with pytest.raises(KeyboardInterrupt):
            before(client, backups=backups)
    with cluster(3, 1, snapshots=SnapshotConfig(directory=str(tmp_path), resume="half")) as c:
        after = Halted(c)
        ((found, w),) = c.workers(partial(after, backups=backups))
        queue = c.scheduler.state.data.get("minimize")
        assert queue.epoch == len(after.points) - 1
    with cluster(1, 1) as c:
        whole = Halted(c)
        ((wanted, best),) = c.workers(partial(whole, backups=backups))
    assert found.message == wanted.message
    assert len(before.points) - 1 + len(after.points) == len(whole.points) == found.evaluations
    assert torch.equal(after.points[0], before.points[-1])
    assert found.losses == pytest.approx(wanted.losses, rel=0, abs=1e-12)
    assert torch.allclose(w, best, rtol=0, atol=1e-8)


def test_a_lost_server_costs_what_came_after_the_snapshot(tmp_path: Path) -> None:
    """The job goes back by itself, and both workers' scripts begin again in mid-search."""
    where = SnapshotConfig(directory=str(tmp_path))
    points: list[int] = []
    with cluster(2, 2, lease_s=4.0, snapshots=where) as c:
        lost = threading.Event()

        def work(rank: int) -> ps.MinimizeResult:
            while True:
                client = c.connect(f"worker-{rank}")
                halted = Halted(c)
                halted.gate = lost
                try:
                    result, _ = halted(client)
                    client.finish()
                    return result
                except RolledBackError:
                    client.fail("rolled back")
                finally:
                    points.append(len(halted.points)) if rank == 0 else None

        def lose() -> None:
            until(lambda: c.scheduler.offices.get("minimize").number > 6)
            c.snapshot("half")
            c.restart_server(0)
            lost.set()

        thread = threading.Thread(target=lose)
        thread.start()
        first, second = in_threads([partial(work, 0), partial(work, 1)])
        thread.join()
        assert lost.is_set()
        assert c.scheduler.state.members.job == 2
    with cluster(1, 1) as c:
        ((wanted, _),) = c.workers(Halted(c))
    assert first == second
    assert first.losses == pytest.approx(wanted.losses, rel=0, abs=1e-12)
    assert points[-1] <= wanted.evaluations - 6, "the search did not begin anew"


def test_a_minimization_that_had_ended_is_asked_for_again(tmp_path: Path) -> None:
    """The same question has the same answer at once; one for more goes on from the optimum."""
    where = SnapshotConfig(directory=str(tmp_path))
    with cluster(1, 1, snapshots=where) as c:
        (said,) = c.workers(partial(Halted(c), max_iter=3))
        c.snapshot("over")
    resume = SnapshotConfig(directory=str(tmp_path), resume="over")
    for more in (3, 9):
        with cluster(2, 1, snapshots=resume) as c:
            asked = Halted(c)
            ((result, w),) = c.workers(partial(asked, max_iter=more))
        assert f"max_iter={more}" in result.message
        assert bool(asked.points) == (more > 3)
        assert result.loss < said[0].loss if more > 3 else torch.equal(w, said[1])


def test_a_snapshot_of_another_objective_is_not_gone_on_from(tmp_path: Path) -> None:
    where = SnapshotConfig(directory=str(tmp_path))
    with cluster(1, 1, snapshots=where) as c, c.connect("worker-0") as client:
        before = Halted(c, halt=3)
        with pytest.raises(KeyboardInterrupt):
            before(client)
    resume = SnapshotConfig(directory=str(tmp_path), resume="half")
    with cluster(1, 1, snapshots=resume) as c, c.connect("worker-0") as client:
        after = Halted(c)
        with pytest.raises(JobFailedError, match=r"l2 is 0.5, and was 0.001.*under another name"):
            after(client, l2=0.5)


def test_vectors_are_cut_while_a_minimization_goes_on(tmp_path: Path) -> None:
    """Snapshots as fast as they can be taken, two workers; from each the same optimum."""
    where = SnapshotConfig(directory=str(tmp_path), keep=100)
    over = threading.Event()
    with cluster(2, 2, snapshots=where) as c:

        def snapshots() -> None:
            for number in range(4):
                wanted = 4 * number
                until(lambda n=wanted: c.scheduler.offices.get("minimize").number > n, 30)  # type: ignore[misc]
                if not over.is_set():
                    c.snapshot(f"s{number}")

        thread = threading.Thread(target=snapshots)
        thread.start()
        try:
            (wanted, _), _ = c.workers(Halted(c))
        finally:
            over.set()
            thread.join()
    names = [manifest.name for manifest in complete(open_store(str(tmp_path)))]
    assert len(names) == 4
    for name in names[1:3]:
        with cluster(1, 1, snapshots=SnapshotConfig(directory=str(tmp_path), resume=name)) as c:
            ((found, _),) = c.workers(Halted(c))
        assert found.losses == pytest.approx(wanted.losses, rel=0, abs=1e-12)
