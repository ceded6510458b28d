"""What was set on an object, remembered and compared in a microsecond."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Collection
from typing import Any


class Attributes:
    """The attributes of one object at one moment, but for those that its own work changes.

    All of them, by `vars`, those of a later version too: what is not known to be harmless counts.
    Lists and dicts are copied, so that a change inside one counts as well.

    Args:
        volatile: the names that do not count.
        derived: says of a name that was not there then whether it is computed again when it is gone.
            It is removed: whoever set it may have set something else than what is computed.
    """

    __slots__ = ("_derived", "_known", "_names", "_read", "_values")

    def __init__(
        self,
        thing: object,
        volatile: Collection[str],
        derived: Callable[[str], bool] = lambda name: False,
    ) -> None:
        now = vars(thing)
        self._derived = derived
        self._known = {*now, *volatile}
        self._names: list[str] = []
        self._values: tuple[Any, ...] = ()
        for name in now:
            if name not in volatile:
                self.learn(name, now[name])

    def learn(self, name: str, value: Any) -> None:
        """Expect this value of this attribute too, if nothing was expected of it yet."""
        if name not in self._names:
            self._known.add(name)
            self._names.append(name)
            copied = value.copy() if isinstance(value, (dict, list, deque)) else value
            self._values = (*self._values, copied)
            # Two names at least, so that it returns a tuple.
            self._read = operator.itemgetter(*self._names, self._names[0])

    def still_hold(self, thing: object) -> bool:
        """Tell whether nothing was set on this object since."""
        now = vars(thing)
        try:
            if self._read(now)[:-1] != self._values:
                return False
        except KeyError:
            return False
        if now.keys() <= self._known:
            return True
        new = now.keys() - self._known
        if not all(map(self._derived, new)):
            return False
        for name in new:
            del now[name]
        return True
