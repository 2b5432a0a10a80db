"""The page's modules keep to what the small bundler can join, and joined they run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from fusionlab.errors import MissingFileError
from fusionlab.page_script import bundle, exported_names, page_folder

MODULES = sorted(path.name for path in page_folder().glob("*.js"))
TOP_NAME = re.compile(r"^(?:export )?(?:async )?(?:function|class|const|let) (?:(\w+)|[\[{]([^\]}]*)[\]}])", re.MULTILINE)


def top_names(text: str) -> list[str]:
    found = [name for pair in TOP_NAME.findall(text) for name in re.findall(r"\w+", pair[0] or pair[1])]
    return found


def node(*arguments: str) -> subprocess.CompletedProcess[str]:
    from playwright._impl._driver import compute_driver_executable

    command = [str(compute_driver_executable()[0]), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_top_level_name_has_one_module() -> None:
    """Joined, all modules share one scope: a name of two of them would be an error, or worse, the wrong function."""
    homes: dict[str, list[str]] = {}
    for module in MODULES:
        for name in top_names((page_folder() / module).read_text(encoding="utf-8")):
            homes.setdefault(name, []).append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_in_the_one_form_that_is_joined_and_only_what_exists(module: str) -> None:
    """Anything else would be left in the script, where an import statement is a syntax error."""
    text = (page_folder() / module).read_text(encoding="utf-8")
    imports = re.findall(r"^import .*$", text, re.MULTILINE)
    for line in imports:
        found = re.fullmatch(r'import \{ ([\w, ]+) \} from "\./([\w.]+)";', line)
        assert found, f"{module}: {line}"
        missing = set(found[1].split(", ")) - set(exported_names(found[2]))
        assert not missing, f"{module} imports {missing} from {found[2]}"
    for name in (name for line in imports for name in re.findall(r"\w+", line.split("{")[1].split("}")[0])):
        assert len(re.findall(rf"\b{name}\b", text)) > 1, f"{module} imports {name} and does not use it"
    assert not re.findall(r"^export (?:default|\{|\*)", text, re.MULTILINE)


@pytest.mark.parametrize("as_module", [False, True])
def test_the_joined_script_is_valid_and_holds_no_import(tmp_path: Path, as_module: bool) -> None:
    """One text for a page, one for a widget; the style cannot end its string or the page's script element."""
    text = bundle("page.js", module=as_module)
    assert not re.findall(r"^(?:import|export) ", text, re.MULTILINE)
    assert "</" not in text.replace("<\\/", "")
    script = tmp_path / ("page.mjs" if as_module else "page.js")
    script.write_text(text, encoding="utf-8")
    done = node("--check", str(script))
    assert done.returncode == 0, done.stderr


def test_a_module_elsewhere_may_use_the_page_and_its_neighbours(tmp_path: Path) -> None:
    """The explorer's own modules lie beside it, the views in fusionlab/page/."""
    (tmp_path / "words.js").write_text('export const WORD = "here";\n')
    entry = 'import { WORD } from "./words.js";\nimport { number } from "./dom.js";\nconsole.log(WORD, number(-1.5));\n'
    (tmp_path / "entry.js").write_text(entry)
    (tmp_path / "out.mjs").write_text(bundle(tmp_path / "entry.js", module=True), encoding="utf-8")
    done = node(str(tmp_path / "out.mjs"))
    assert done.stdout.strip() == "here −1.50", done.stderr


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    """A broken install should say which file is gone."""
    (tmp_path / "entry.js").write_text('import { a } from "./gone.js";\n')
    with pytest.raises(MissingFileError, match=r"gone\.js; install fusionlab again"):
        bundle(tmp_path / "entry.js")
