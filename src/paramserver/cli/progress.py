"""How far a job is, in one line, from successive states of the cluster."""

from __future__ import annotations

from typing import Any

from paramserver.cli.state import GONE, State


class Progress:
    """Remembers what rates and the summary need; ``now`` is in seconds, monotonic."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.state: State | None = None
        self._samples: dict[tuple[str, int], float] = {}
        self._first: tuple[float, float] | None = None
        self._last: tuple[float, float] | None = None
        self._rate = 0.0

    def update(self, state: State, now: float) -> None:
        """Takes in a state gathered at ``now``."""
        self.state = state
        for member in workers(state):
            key = (member["name"], member["incarnation"])
            count = member["stats"].get("samples", 0.0)
            self._samples[key] = max(count, self._samples.get(key, 0.0))
        total = self.samples
        if self._last is not None and now > self._last[0]:
            rate = (total - self._last[1]) / (now - self._last[0])
            # Heartbeats come in bursts; the shown rate follows within a few of them.
            self._rate = rate if self._rate == 0 else 0.5 * self._rate + 0.5 * rate
        if self._first is None or self._first[1] == 0:
            self._first = (now, total)
        self._last = (now, total)

    @property
    def samples(self) -> float:
        """Samples of the job so far, restarted workers included."""
        return sum(self._samples.values())

    def line(self) -> str:
        """``2/2 servers · 4/4 workers · epoch 3 · shards 61/120 · loss 0.214 · ...``."""
        if self.state is None:
            return "starting"
        if self.state["job"]["state"] in ("none", "waiting"):
            return self._counts() + "".join(f" · {w['why']}" for w in self.state["waits"][:1])
        parts = [self._counts(), *self._data(), *self._scalars()]
        if self._rate > 0:
            parts.append(f"{self._rate:,.0f} samples/s")
        parts += self._staleness() + self._slowest()
        return " · ".join(parts)

    def summary(self, seconds: float, restarts: int = 0) -> str:
        """What a job that is done has done, after ``seconds``."""
        if self.state is None:
            return f"done in {seconds:.1f} s"
        there = workers(self.state)
        steps = max((m["stats"].get("steps", 0.0) for m in there), default=0.0)
        parts = [count(len(there), "worker"), count(len(servers(self.state)), "server")]
        epochs = max(map(epochs_done, self.state["datasets"]), default=0)
        parts += [count(epochs, "epoch")] if epochs else []
        parts += [count(steps, "step")] if steps else []
        if self.samples:
            parts.append(count(self.samples, "sample") + self._mean_rate())
        parts += self._scalars()
        parts += [count(restarts, "restart")] if restarts else []
        return f"done in {seconds:.1f} s: {', '.join(parts)}"

    def _mean_rate(self) -> str:
        if self._first is None or self._last is None or self._last[0] <= self._first[0]:
            return ""
        rate = (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])
        return f" ({rate:,.0f} samples/s)" if rate > 0 else ""

    def _counts(self) -> str:
        assert self.state is not None
        job = self.state["job"]
        here = [sum(m["state"] not in GONE for m in f(self.state)) for f in (servers, workers)]
        return (
            f"{here[0]}/{job['expected_servers']} servers · "
            f"{here[1]}/{job['expected_workers']} workers"
        )

    def _data(self) -> list[str]:
        assert self.state is not None
        if not self.state["datasets"]:
            return []
        data = self.state["datasets"][0]
        return [f"epoch {data['epoch'] + 1}", f"shards {data['done']}/{data['shards']}"]

    def _scalars(self) -> list[str]:
        assert self.state is not None
        found = self.state["scalars"]
        names = ["loss"] if "loss" in found else list(found)[:1]
        return [f"{name} {found[name]:.4g}" for name in names]

    def _staleness(self) -> list[str]:
        assert self.state is not None
        found = [m["stats"]["staleness"] for m in workers(self.state) if "staleness" in m["stats"]]
        mean = sum(found) / len(found) if found else 0.0
        return [f"staleness {mean:.1f}"] if mean > 0 else []

    def _slowest(self) -> list[str]:
        assert self.state is not None
        lags = {m["name"]: max(m["lag"].values(), default=0) for m in workers(self.state)}
        name = max(lags, key=lambda n: lags[n], default="")
        return [f"slowest {name} ({lags[name]} behind)"] if name and lags[name] > 0 else []


def workers(state: State) -> list[Any]:
    """The workers among the members."""
    return [m for m in state["members"] if m["role"] == "worker"]


def servers(state: State) -> list[Any]:
    """The servers among the members."""
    return [m for m in state["members"] if m["role"] == "ps"]


def epochs_done(dataset: State) -> int:
    """How many epochs of a data set are over."""
    drained: bool = dataset["shards"] > 0 and dataset["done"] == dataset["shards"]
    epoch: int = dataset["epoch"]
    return epoch + drained


def count(number: float, noun: str) -> str:
    """``1 worker``, ``2,000 samples``."""
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"
