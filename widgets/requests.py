"""What the panel can ask for: one function a request, each called with the explorer, the message and its buffers.

A function does what is quick and hands the rest to the worker. Whatever it raises ends in the panel, in words.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlab.errors import FusionError, MissingFileError, UnknownNameError
from fusionlab.trace_payload import alternative_payload

from .python_call import python_call
from .runs import compare_runs

if TYPE_CHECKING:
    from .explorer import Explorer

Content = Mapping[str, Any]
Buffers = Sequence[Any]

_MOST_UPLOAD_BYTES = 8_000_000  # as in explorer.js; a Jupyter server closes the line on messages above 10 MiB


def come(explorer: Explorer, content: Content, _: Buffers) -> None:
    """A view of the explorer was made in a page."""
    explorer.views.add(str(content.get("view")))


def leave(explorer: Explorer, content: Content, _: Buffers) -> None:
    """A view is gone, its output was cleared; once there is none, nobody is waiting for the caches."""
    explorer.views.discard(str(content.get("view")))
    if not explorer.views and not explorer.worker.busy:
        explorer.worker.submit(lambda _: explorer.writer.free_caches())


def load_team(explorer: Explorer, content: Content, _: Buffers) -> None:
    """{"name"} of a team, or {"large", "small", "experts": {name: id}, "quantization"}."""
    name, options = team_options(content)
    explorer.load(name, **options)


def run(explorer: Explorer, content: Content, _: Buffers) -> None:
    """{"settings"}: write an answer from its beginning."""
    settings = explorer.change(mapping(content.get("settings")), another_text=True)
    explorer.submit(lambda request: explorer.writer.run(request, settings))


def go_on(explorer: Explorer, content: Content, _: Buffers) -> None:
    """{"run", "settings"}: more tokens."""
    limit = explorer.change(mapping(content.get("settings"))).max_new_tokens
    explorer.submit(lambda request: explorer.writer.go_on(request, content.get("run"), limit))


def resolve(explorer: Explorer, content: Content, _: Buffers) -> None:
    """{"run", "constraint", "method"}: a control was let go."""
    changes = {name: content[name] for name in ("constraint", "method") if name in content}
    explorer.change(changes)
    explorer.submit(lambda request: explorer.writer.resolve(request, content.get("run"), changes))


def what_if(explorer: Explorer, content: Content, _: Buffers) -> None:
    """{"run", "what_if": {"index", "token_id"} or {"index", "alpha"}}."""
    wanted = mapping(content.get("what_if"))
    explorer.submit(lambda request: explorer.writer.what_if(request, content.get("run"), wanted))


def stop(explorer: Explorer, _: Content, __: Buffers) -> None:
    """End what is being written, at its next token."""
    if not explorer.worker.stop():
        explorer.say("idle", "Nothing is running.")


def select_run(explorer: Explorer, content: Content, _: Buffers) -> None:
    """{"run"}: show it again."""
    explorer.look_at(explorer.history.find(content.get("run")))


def compare(explorer: Explorer, content: Content, _: Buffers) -> None:
    """{"runs": [a, b]}: answered with their differences, and b's text to lay beside a's."""
    runs = content.get("runs")
    if not isinstance(runs, list) or len(runs) != 2 or runs[0] == runs[1]:
        raise FusionError("a comparison needs two different runs", remedy="tick two runs of the history")
    first, second = (explorer.history.find(number) for number in runs)
    other = {"name": f"run {second.number}", "token_ids": second.trace.token_ids.tolist(), "pieces": second.trace.pieces,
             "text": second.trace.text}  # fmt: skip
    explorer.show(first)
    answer = {"comparison": compare_runs(first, second), "text": alternative_payload(other)}
    explorer.send({"type": "comparison", "serial": content.get("serial"), **answer})


def open_file(explorer: Explorer, content: Content, buffers: Buffers) -> None:
    """{"name"} and one buffer: a trace file from the user's machine."""
    if len(buffers) != 1:
        raise MissingFileError("no file came with the request", remedy="choose a trace file (.parquet)")
    if len(buffers[0]) > _MOST_UPLOAD_BYTES:
        raise FusionError(f"the file has {len(buffers[0]):,} bytes", remedy="open it in Python: Explorer(trace=path)")
    name = Path(str(content.get("name") or "trace.parquet")).name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(buffers[0])
        explorer.open_trace(path)


def export(explorer: Explorer, content: Content, _: Buffers) -> None:
    """{"kind": "parquet", "html" or "python", "run"}: answered with a file, or with code."""
    kind, found = content.get("kind"), explorer.run_of(content.get("run"))
    serial = content.get("serial")
    if kind == "python":
        explorer.send({"type": "code", "serial": serial, "text": python_call(found.written_settings, found.models)})
    elif kind in _MEDIA:
        name = f"fusion-run-{found.number}.{kind}"
        with tempfile.TemporaryDirectory() as folder:
            explorer.save(Path(folder) / name, found.number)
            data = (Path(folder) / name).read_bytes()
        explorer.send({"type": "file", "serial": serial, "name": name, "media": _MEDIA[kind]}, [data])
    else:
        raise FusionError(f"nothing can be exported as {kind!r}", remedy=f"known: {', '.join(_MEDIA)}, python")


_MEDIA = {"parquet": "application/vnd.apache.parquet", "html": "text/html"}

REQUESTS: dict[str, Callable[[Explorer, Content, Buffers], None]] = {
    "come": come,
    "leave": leave,
    "load": load_team,
    "run": run,
    "continue": go_on,
    "resolve": resolve,
    "what_if": what_if,
    "stop": stop,
    "select": select_run,
    "compare": compare,
    "open": open_file,
    "export": export,
}


def find_request(kind: str) -> Callable[[Explorer, Content, Buffers], None]:
    """The function that answers a request. Raises `UnknownNameError`."""
    if kind not in REQUESTS:
        raise UnknownNameError(
            f"the panel asks for {kind!r}, which this release does not know",
            remedy="the page is of another release: run the cell again and reload the page",
        )
    return REQUESTS[kind]


def mapping(value: object) -> dict[str, Any]:
    """A part of a request that has names. Raises `FusionError`."""
    if not isinstance(value, Mapping):
        raise FusionError(f"the request holds {value!r} where names and values are expected")
    return dict(value)


def team_options(content: Content) -> tuple[str | None, dict[str, Any]]:
    """What the panel's form says, as arguments of `Team.from_pretrained`. Raises `FusionError` for a field left empty."""
    if content.get("name"):
        return str(content["name"]), {}
    ids = {field: str(content.get(field) or "").strip() for field in ("large", "small")}
    for field, model_id in ids.items():
        if not model_id:
            raise FusionError(f"no {field} model is named", remedy="give a hub id or a folder, or take the embedded team")
    experts = {name.strip(): str(source).strip() for name, source in mapping(content.get("experts") or {}).items()}
    if not experts or not all(experts.values()) or not all(experts):
        raise FusionError("an expert needs a name and a model id", remedy="write one a line: name = id or folder")
    options: dict[str, Any] = {**ids, "experts": experts}
    if content.get("quantization"):
        options["quantization"] = str(content["quantization"])
    return None, options
