"""``state_dict`` values as JSON and back: numbers, text, containers and tensors; nothing else.

Plain JSON would turn tuples into lists, integer keys into text and infinity into something that is
not JSON, so these are written as objects with one key that starts with ``$``.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from paramserver.errors import InvalidRequestError, UnsupportedError
from paramserver.wire.tensors import DTYPES, NAMES

MAX_BYTES = 1 << 20


def dumps(state: Mapping[str, Any]) -> str:
    """JSON text of a state.

    Raises:
        UnsupportedError: a value that is neither JSON nor a tensor, named by its path; or more
            than 1 MiB of text.
    """
    text = json.dumps(_encode(state, "state"), allow_nan=False)
    if len(text) > MAX_BYTES:
        raise _too_large("state", len(text))
    return text


def _too_large(path: str, size: int) -> UnsupportedError:
    return UnsupportedError(
        f"{path} has {size} bytes or more: client.epochs carries at most {MAX_BYTES}; "
        "it is for schedules, not for models"
    )


def loads(text: str) -> dict[str, Any]:
    """The state that ``dumps`` wrote.

    Raises:
        InvalidRequestError: the text is not such a state.
    """
    try:
        state = _decode(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidRequestError(f"not a state: {error}") from error
    if not isinstance(state, dict):
        raise InvalidRequestError("not a state: not an object")
    return state


def _encode(value: Any, path: str) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, Tensor):
        return _encode_tensor(value, path)
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        return _encode_mapping(value, path)
    raise UnsupportedError(
        f"{path} is a {type(value).__module__}.{type(value).__qualname__}: states travel as JSON "
        "and tensors only, never as pickles"
    )


def _encode_mapping(value: Mapping[Any, Any], path: str) -> Any:
    plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
    if plain and not isinstance(value, Counter):
        return {key: _encode(item, f"{path}.{key}") for key, item in value.items()}
    pairs = [
        [_encode(key, f"a key of {path}"), _encode(item, f"{path}[{key!r}]")]
        for key, item in value.items()
    ]
    return {"$counter" if isinstance(value, Counter) else "$items": pairs}


def _encode_tensor(value: Tensor, path: str) -> Any:
    if value.dtype not in NAMES or value.layout != torch.strided:
        raise UnsupportedError(f"{path} is a {value.layout} tensor of {value.dtype}")
    if 2 * value.numel() > MAX_BYTES:  # a digit and a comma each
        raise _too_large(path, 2 * value.numel())
    values = _encode(value.detach().cpu().reshape(-1).tolist(), path)
    return {"$tensor": [NAMES[value.dtype], list(value.shape), values]}


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, content),) = value.items()
        if key.startswith("$"):
            return _SPECIAL[key](content)
    return {key: _decode(item) for key, item in value.items()}


def _decode_tensor(content: Any) -> Tensor:
    name, shape, values = content
    return torch.tensor(_decode(values), dtype=DTYPES[name]).reshape(shape)


_SPECIAL: dict[str, Callable[[Any], Any]] = {
    "$float": float,
    "$tuple": lambda items: tuple(_decode(item) for item in items),
    "$items": lambda pairs: {_decode(key): _decode(item) for key, item in pairs},
    "$counter": lambda pairs: Counter({_decode(key): _decode(item) for key, item in pairs}),
    "$tensor": _decode_tensor,
}
