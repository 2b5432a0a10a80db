"""The page's modules as one script: for a page, the output of a notebook, or a widget.

The modules under fusionlab/page/ are plain ES modules without dependencies. A bundler of a dozen lines joins them, because
a page that is mailed and a widget's `_esm` are one text each. Every top-level name occurs in one module only; a test
holds that.
"""

from __future__ import annotations

from pathlib import Path


def bundle(entry: str | Path, *, module: bool = False) -> str:
    """One script of a module and everything it imports.

    >>> bundle("page.js")                       # a classic script, all names inside a function       # doctest: +SKIP
    >>> bundle(Path("widgets/explorer.js"), module=True)     # an ES module that exports what the entry exports
    ... # doctest: +SKIP

    entry: a file name of fusionlab/page/, or the path of a module elsewhere. `import ... from "./name.js"` is looked for
    beside the importing module first, then in fusionlab/page/. The styles are part of the script.
    """
    raise NotImplementedError
