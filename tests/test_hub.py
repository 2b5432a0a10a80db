"""Models of the hub: whole or fetched again, and without network one sentence at once."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from safetensors.torch import load_file, save_file
from tiny_team import make_model, make_tokenizer, save_model

from fusionlab import hub, hub_address
from fusionlab.errors import MissingFileError, ModelError
from fusionlab.hub import find_model, missing_file
from fusionlab.hub_address import address_to_try
from fusionlab.models import ModelSource
from fusionlab.team import Team

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROXIES = [f"{kind}_proxy" for kind in ("http", "https", "all", "no")]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model whose weights are two shards and an index."""
    folder = save_model(make_model(0), make_tokenizer(), tmp_path_factory.mktemp("hub") / "sharded")
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {f"model-0000{part + 1}-of-00002.safetensors": names[part::2] for part in range(2)}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard, metadata={"format": "pt"})
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that never fetched anything and has no proxy; huggingface_hub reads its environment once, at import."""
    folder = tmp_path / "hf" / "hub"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return folder


def put_in_cache(cache: Path, model: Path, *, without: str = "") -> Path:
    """A snapshot of owner/name as an interrupted download leaves it: `without` never arrived."""
    snapshot = cache / "models--owner--name" / "snapshots" / COMMIT
    shutil.copytree(model, snapshot, ignore=shutil.ignore_patterns(without) if without else None)
    refs = cache / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    return snapshot


# -- whole snapshots -----------------------------------------------------------------------------

PARTS = ["config.json", "tokenizer*", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]


def named(part: str) -> str:
    """How an error calls a missing part."""
    return {"tokenizer*": "tokenizer.json", "model.safetensors.index.json": "model.safetensors"}.get(part, part)


def test_a_whole_snapshot_is_used_without_network(cache: Path, sharded: Path) -> None:
    """What is cached must work on a train."""
    snapshot = put_in_cache(cache, sharded)
    assert find_model(ModelSource("owner/name")) == snapshot


@pytest.mark.parametrize("part", PARTS)
def test_without_network_a_partial_snapshot_names_the_missing_file(cache: Path, sharded: Path, part: str) -> None:
    """It used to be accepted, and failed much later, inside transformers."""
    put_in_cache(cache, sharded, without=part)
    with pytest.raises(
        MissingFileError, match=f"'owner/name' is only partly .* lacks {named(part)}, and the hub"
    ) as caught:
        find_model(ModelSource("owner/name"))
    assert "\n" not in str(caught.value)


def test_a_link_to_a_blob_that_is_gone_counts_as_missing(cache: Path, sharded: Path) -> None:
    """The cache holds links into its blobs, and cleaning up by hand removes those first."""
    shard = put_in_cache(cache, sharded) / "model-00001-of-00002.safetensors"
    shard.unlink()
    shard.symlink_to("../../blobs/gone")
    with pytest.raises(MissingFileError, match="lacks model-00001-of-00002"):
        find_model(ModelSource("owner/name"))


def test_local_folders_are_checked_for_shards_before_anything_loads(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that broke off would otherwise show after the large model was loaded."""
    folder = Path(shutil.copytree(sharded, tmp_path / "copy"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    monkeypatch.setattr("fusionlab.loading.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ModelError, match="lacks model-00002-of-00002.safetensors"):
        Team.from_pretrained(large=str(sharded), small=str(folder), say=lambda line: None)


def test_an_index_that_is_no_index_is_named(sharded: Path, tmp_path: Path) -> None:
    """Half a JSON file is what a full disk leaves."""
    folder = Path(shutil.copytree(sharded, tmp_path / "copy"))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ')
    with pytest.raises(ModelError, match="index.json is no index of weight files"):
        missing_file(folder)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as one download needs."""

    model: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/owner/name/tree"):
            self.answer(json.dumps([
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": digest(file)}
                for file in self.model.iterdir()
            ]).encode())  # fmt: skip
        elif path.startswith("/api/models/owner/name"):
            self.answer(json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": []}).encode())
        else:
            file = self.model / path.rpartition("/")[2]
            self.answer(file.read_bytes(), {"ETag": f'"{digest(file)}"', "X-Repo-Commit": COMMIT})

    def answer(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing into the test's output."""


def digest(file: Path) -> str:
    """What the hub gives as a file's etag."""
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def endpoint(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub on this machine that holds owner/name, over http and on a port of its own."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("H", (Hub,), {"model": sharded}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield url
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("endpoint")
@pytest.mark.parametrize("part", ["everything", *PARTS])
def test_a_partial_snapshot_is_fetched_again(cache: Path, sharded: Path, part: str) -> None:
    """An interrupted download is taken up, from a hub at http://host:port as from the public one."""
    if part != "everything":
        put_in_cache(cache, sharded, without=part)
    found = find_model(ModelSource("owner/name"))
    assert found == cache / "models--owner--name" / "snapshots" / COMMIT
    assert missing_file(found) is None
    for file in sharded.iterdir():
        assert (found / file.name).read_bytes() == file.read_bytes()


# -- reachable or not ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "environment", "address"),
    [
        ("https://huggingface.co", {}, ("huggingface.co", 443)),
        ("http://mirror", {}, ("mirror", 80)),
        ("http://mirror:8080", {}, ("mirror", 8080)),
        ("https://mirror:8443/hub", {}, ("mirror", 8443)),
        ("http://[::1]:8080", {}, ("::1", 8080)),
        ("https://huggingface.co", {"HTTPS_PROXY": "http://proxy:3128"}, ("proxy", 3128)),
        ("https://huggingface.co", {"https_proxy": "proxy:3128"}, ("proxy", 3128)),
        ("https://huggingface.co", {"https_proxy": "http://user:secret@proxy"}, ("proxy", 80)),
        ("https://huggingface.co", {"ALL_PROXY": "socks5://proxy"}, ("proxy", 1080)),
        ("http://mirror:8080", {"HTTPS_PROXY": "http://proxy:3128"}, ("mirror", 8080)),
        ("http://mirror:8080", {"http_proxy": "http://proxy:3128", "no_proxy": "mirror"}, ("mirror", 8080)),
        ("http://mirror:8080", {"http_proxy": "http://proxy:3128", "no_proxy": "other"}, ("proxy", 3128)),
    ],
)
def test_the_address_is_the_endpoints_or_its_proxys(
    endpoint: str, environment: dict[str, str], address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking port 443 of a mirror on 8080 called a reachable hub unreachable, and the other way round."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert address_to_try(endpoint) == address


@pytest.mark.parametrize("endpoint", ["mirror:8080", "http://mirror:port", "", "http://"])
def test_an_endpoint_that_is_no_address_is_said_to_be_none(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reporting 'no network' would send the user looking in the wrong place."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    with pytest.raises(ModelError, match="HF_ENDPOINT is .*http://host:8080"):
        hub_address.why_unreachable()


def test_reachable_means_that_somebody_listens(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on another port than 443; and not when the user said offline."""
    assert hub_address.why_unreachable() is None
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "refused" in str(hub_address.why_unreachable())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub_address.why_unreachable() == "HF_HUB_OFFLINE is set"


def test_a_name_server_that_does_not_answer_does_not_hold_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up a name knows no timeout of its own; some networks swallow the question for half a minute."""
    asked, over = threading.Event(), threading.Event()

    def look_up(*_: Any, **__: Any) -> Any:
        asked.set()
        over.wait(60)
        raise OSError("no answer")

    monkeypatch.setattr(socket, "create_connection", look_up)
    monkeypatch.setattr(hub_address, "_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://hub")
    assert hub_address.why_unreachable() == "no answer from hub:80 within 0.05 seconds"
    assert asked.is_set() and not over.is_set()
    over.set()


@pytest.mark.parametrize("cause", ["offline", "unreachable"])
@pytest.mark.parametrize("member", ["large", "small", "experts"])
def test_hub_ids_without_network_fail_before_anything_loads(
    sharded: Path, monkeypatch: pytest.MonkeyPatch, cause: str, member: str
) -> None:
    """Without this, huggingface_hub retries for minutes and ends in a chained traceback."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", cause == "offline")
    monkeypatch.setattr("fusionlab.loading.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    team: dict[str, Any] = {"large": str(sharded), "small": str(sharded)}
    team[member] = {"math": "owner/no-model"} if member == "experts" else "owner/no-model"
    with pytest.raises(MissingFileError, match="'owner/no-model'.*hub cannot be reached.*local folder") as caught:
        Team.from_pretrained(**team, say=lambda line: None)
    assert "\n" not in str(caught.value)


def test_hub_faults_become_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt or gated id answers with a page of text; its first line and what to check is enough."""

    def fetch(source: ModelSource) -> Path:
        raise OSError("401 Client Error.\n\nRepository Not Found for url ...\nPlease make sure ...")

    monkeypatch.setattr(hub, "fetch_snapshot", fetch)
    monkeypatch.setattr(hub, "why_unreachable", lambda: None)
    with pytest.raises(ModelError, match="'owner/nothing' cannot be fetched: 401 Client Error.; check the id") as caught:
        find_model(ModelSource("owner/nothing"))
    assert "\n" not in str(caught.value)


def test_a_proxy_that_refuses_is_one_line_too(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """The proxy takes the connection, and then says no; its error is no OSError."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint.replace("http:", "https:"))  # no TLS there
    with pytest.raises(ModelError, match="'owner/name' cannot be fetched"):
        find_model(ModelSource("owner/name"))
