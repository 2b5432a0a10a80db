"""The page's modules as one script: for a page, the output of a notebook, or a widget.

The modules under fusionlab/page/ are plain ES modules without dependencies. They are joined here, because a page that
is mailed and a widget's `_esm` are one text each. What they may do is little, so that joining is little: import names
from "./file.js" on one line, without renaming, and export declarations. Every name at the top of a module occurs in
that module only; tests hold both.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path

from fusionlab.errors import MissingFileError

_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w.]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const|let) )", re.MULTILINE)
_EXPORTED = re.compile(r"^export (?:async )?(?:function|class|const|let) (\w+)", re.MULTILINE)
_COMMENT = re.compile(r"^[ \t]*(?://.*|/\*\*(?:.|\n)*?\*/)\n", re.MULTILINE)  # lines that are nothing else
STYLE_MODULE = "style.js"  # made of views.css; modules import STYLE from it


def bundle(entry: str | Path, *, module: bool = False) -> str:
    """One script of a module and everything it imports.

    >>> bundle("page.js").startswith('"use strict";')                       # a classic script, nothing global
    True
    >>> bundle(Path("widgets/trace_view.js"), module=True)                  # doctest: +SKIP
    'const STYLE = ...'

    entry: the name of a file of fusionlab/page/, or the path of a module elsewhere. `import ... from "./name.js"` is
    looked for beside the importing module first, then in fusionlab/page/. module: an ES module with the entry's
    exports, for anywidget; else a script for a page. The styles are part of it. Raises `MissingFileError`.
    """
    path = Path(entry) if Path(entry).is_absolute() or len(Path(entry).parts) > 1 else page_folder() / entry
    return _bundle(path, module)


def page_folder() -> Path:
    """Where the page's modules, style and template lie."""
    return Path(str(resources.files("fusionlab"))) / "page"


@cache
def _bundle(entry: Path, module: bool) -> str:
    parts: dict[Path, str] = {}
    _collect(entry, parts)
    texts = [_EXPORT.sub("", text) for path, text in parts.items() if path != entry]
    main = parts[entry]
    if module:
        return "\n".join([*texts, main])
    return "\n".join(['"use strict";', "(() => {", *texts, _EXPORT.sub("", main), "})();", ""])


def _collect(path: Path, parts: dict[Path, str]) -> None:
    """Add a module's text, without its imports, after those of the modules it imports."""
    if path in parts:
        return
    text = _read(path)
    parts[path] = ""  # a circle ends here
    for imported in _IMPORT.finditer(text):
        beside = path.parent / imported[2]
        _collect(beside if beside.is_file() else page_folder() / imported[2], parts)
    del parts[path]
    parts[path] = _COMMENT.sub("", _IMPORT.sub("", text)).strip("\n")


def _read(path: Path) -> str:
    if path.name == STYLE_MODULE:
        css = (page_folder() / "views.css").read_text(encoding="utf-8")
        return f"export const STYLE = {_template(css)};\n"
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingFileError(f"there is no module at {path}", remedy="install fusionlab again") from error


def exported_names(name: str) -> list[str]:
    """What a module of fusionlab/page/ exports, in order."""
    return _EXPORTED.findall(_read(page_folder() / name))


def _template(text: str) -> str:
    """Text as a JavaScript template literal that cannot end its script element."""
    for found, written in (("\\", "\\\\"), ("`", "\\`"), ("${", "\\${"), ("</", "<\\/")):
        text = text.replace(found, written)
    return f"`{text}`"
