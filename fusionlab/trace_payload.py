"""A trace as the browser's views read it: JSON-able, compact, harmless inside a page.

Knows nothing of torch or of models; fusionlab/page/ holds the scripts that read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusionlab.trace import Trace


def trace_payload(trace: Trace, *, start: int = 0, alternatives: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """What `mountTrace` and `mountViews` (fusionlab/page/controls.js, views.js) show of a trace.

    >>> payload = trace_payload(result.traces[0])                              # doctest: +SKIP
    >>> payload = trace_payload(trace, alternatives=[{"name": "large alone", "token_ids": [...], "pieces": [...]}])
    ... # doctest: +SKIP

    start: leave out the tokens before it. A trace that grows is sent once whole, `trace_payload(trace)` with
    `setPayload`, and then by what is new, `trace_payload(trace, start=n)` with `appendToken`, n being what was sent.
    alternatives: the same prompt answered by others, for the comparison of texts; `pieces` are one text a token.

    The result is plain dicts, lists, texts and numbers, and can be given to json.dumps (or a widget's Dict trait) as it
    is. Numbers by token are base64 of little-endian arrays. Its layout belongs to the scripts of the same release.
    """
    raise NotImplementedError
