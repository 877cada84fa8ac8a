"""What a worker writes down of a run: one JSON line per step, wait and logged scalars."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from paramserver.config import ClientConfig
from paramserver.errors import ConfigurationError
from paramserver.types import StepResult
from paramserver.worker.identity import Identified

logger = logging.getLogger("paramserver")


class RunFile:
    """``FOLDER/NAME.jsonl``, appended to line by line; thread-safe.

    Every line has ``kind`` and ``time`` (Unix seconds). Kinds: ``start`` (worker, rank,
    incarnation, job, scheme), ``step`` (the fields of ``StepResult``; ``samples``: those of this
    process that were applied so far), ``log`` (scalars; null where not finite), ``wait`` (what,
    waited), ``begin`` (the loop asks for its first batch).
    Until ``open``, and after ``close``, what it is given is dropped.

    Args:
        now: Unix seconds.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._file: TextIO | None = None

    def open(self, config: ClientConfig, who: Identified) -> None:
        """The job has started; nothing happens for a reader, or if no folder is configured.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        if config.run_dir is None or config.reader:
            return
        path = Path(config.run_dir, f"{who.name}.jsonl")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", buffering=1, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"run file {path}: {error.strerror}; PARAMSERVER_RUN_DIR must name a folder that "
                "can be written to"
            ) from error
        facts = {name: getattr(who, name) for name in ("rank", "incarnation", "job")}
        scheme = config.scheme.text if config.scheme is not None else None
        self._write("start", {"worker": who.name, **facts, "scheme": scheme})

    def begin(self) -> None:
        """The loop asks for its first batch: what came before was preparation."""
        self._write("begin", {})

    def step(self, result: StepResult, samples: float) -> None:
        """A push; ``samples`` of this process that were applied so far."""
        named = {name: getattr(result, name) for name in StepResult.__dataclass_fields__}
        self._write("step", {**named, "samples": samples})

    def log(self, scalars: Mapping[str, float]) -> None:
        """Scalars of the user's."""
        plain = {name: x if math.isfinite(x) else None for name, x in scalars.items()}
        self._write("log", {"scalars": plain})

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """This worker is idle while inside, and in no step."""
        began = time.monotonic()
        yield
        self._write("wait", {"what": what, "waited": time.monotonic() - began})

    def _write(self, kind: str, content: Mapping[str, Any]) -> None:
        with self._lock:
            if self._file is None:
                return
            line = json.dumps({"kind": kind, "time": self._now(), **content})
            try:
                self._file.write(line + "\n")
            except OSError as error:
                # A full disk must not end a training run.
                logger.warning("run file %s ends here: %s", self._file.name, error)
                self._close()

    def close(self) -> None:
        """Nothing more is written."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError:
                logger.debug("run file %s", file.name, exc_info=True)
