"""How tasks and outcomes are pickled: by reference where that is possible, as Dask does it."""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle

loads = pickle.loads


def dumps(value: Any) -> bytes:
    """Pickle this; what is in no module that a worker could import, such as a lambda, by its code."""
    try:
        found = pickle.dumps(value)
    except Exception:  # noqa: BLE001 - of whatever class
        pass
    else:
        if b"__main__" not in found:  # which is another module there
            return found
    by_code: bytes = cloudpickle.dumps(value)
    return by_code
