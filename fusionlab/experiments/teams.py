"""Teams that outlive a notebook run: loaded once per kernel, whatever runs there one after the other.

A warm kernel clears the notebook's names between runs; what this module holds stays. One team is kept by default, since
two of them rarely fit: `FUSIONLAB_WARM_TEAMS` says how many.
"""

from __future__ import annotations

import gc
import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusionlab.team import Team

COUNT_VARIABLE = "FUSIONLAB_WARM_TEAMS"


@dataclass
class Counter:
    """Loads of teams in this process, and the seconds that they took."""

    loads: int = 0
    seconds: float = 0.0


counter = Counter()
_kept: dict[str, Team] = {}  # the latest used last


def warm_team(name: str | None = None, **options: Any) -> Team:
    """`Team.from_pretrained(name, **options)`, or the team that an earlier run in this kernel loaded that way.

    >>> team = warm_team("embedded", experts=["math", "trivia"])                 # doctest: +SKIP
    >>> counter.loads                                                            # doctest: +SKIP
    1

    The team is shared by the runs of a kernel: use it, do not change it. Raises what `Team.from_pretrained` raises.
    """
    from fusionlab.allocator import release_freed_memory
    from fusionlab.team import Team

    say = options.pop("say", None)
    wanted = json.dumps([name, options], sort_keys=True, default=str)
    if wanted in _kept:
        _kept[wanted] = _kept.pop(wanted)
        return _kept[wanted]
    most = max(1, int(os.environ.get(COUNT_VARIABLE, "1")))
    if len(_kept) >= most:
        gc.unfreeze()  # a warm kernel keeps what is there between runs out of the collector's sight
        while len(_kept) >= most:
            del _kept[next(iter(_kept))]  # before loading: both at once may not fit
        gc.collect()
    release_freed_memory()
    started = time.perf_counter()
    team = Team.from_pretrained(name, **options, **({} if say is None else {"say": say}))
    counter.loads += 1
    counter.seconds += time.perf_counter() - started
    _kept[wanted] = team
    return team
