"""Weights are fetched from a hub's server: only theirs, once, with clear errors.

The server answers as huggingface.co does to the hub's own library.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.models.mossformer2 import MossFormer2
from modules.runtime.errors import PretrainedError
from modules.weights.separators import load_separator
from tests.modules.weights.test_pretrained import write_pointer
from tests.toy import same_weights

SHA = "a" * 40
TALKERS = "alibabasglab/MossFormer2_SS_16K"


class Hub(BaseHTTPRequestHandler):
    """Serves the folders below `root` as repositories with one commit each."""

    root: Path
    asked: list[str]
    cuts: list[int]  # where the next downloads break off

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        self.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}")
        parts = self.path.split("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        folder = self.root / name
        revision = parts[5] if api and len(parts) > 5 else "main"
        if not folder.is_dir():
            return self.fail("RepoNotFound", "Repository not found")
        if revision not in ("main", SHA):
            return self.fail("RevisionNotFound", "Invalid rev id")
        if api:
            paths = [p for p in folder.rglob("*") if p.is_file()]
            files = {p.relative_to(folder).as_posix(): p for p in paths}
            content = {"id": name, "sha": SHA, "private": False, "downloads": 0}
            content |= {"tags": [], "siblings": [{"rfilename": f} for f in files]}
            if parts[4:5] == ["tree"]:
                content = [
                    {"type": "file", "path": f, "size": p.stat().st_size, "oid": SHA}
                    for f, p in files.items()
                ]
            return self.send(json.dumps(content).encode(), body)
        data = folder.joinpath(*parts[4:]).read_bytes()
        self.send(data, body, hashlib.sha256(data).hexdigest())

    def send(self, data, body, etag=None):
        wanted, size = self.headers.get("Range") or "bytes=0-", len(data)
        start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if etag:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", SHA)
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            stop = self.cuts.pop() if self.cuts and len(data) > 1000 else len(data)
            self.wfile.write(data[start:stop])
            self.close_connection = stop < len(data)

    def fail(self, code, message):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running server; the hub's library asks it and keeps its cache in `tmp_path`."""
    handler = type(
        "Handler", (Hub,), {"root": tmp_path / "hub", "asked": [], "cuts": []}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    from huggingface_hub import constants

    url = f"http://127.0.0.1:{server.server_port}"
    for name, value in (
        ("ENDPOINT", url),
        (
            "HUGGINGFACE_CO_URL_TEMPLATE",
            url + "/{repo_id}/resolve/{revision}/{filename}",
        ),
        ("HF_HUB_CACHE", str(tmp_path / "cache")),
        ("HF_HUB_DISABLE_XET", True),
        ("DOWNLOAD_CHUNK_SIZE", 2**16),
        ("HF_HUB_OFFLINE", False),
    ):
        monkeypatch.setattr(constants, name, value)
    handler.server = server
    yield handler
    server.shutdown()
    server.server_close()


def publish_talkers(hub):
    """A MossFormer2 as ClearerVoice publishes it, beside code and a picture."""
    folder = hub.root / TALKERS
    folder.mkdir(parents=True)
    network = MossFormer2(16, 16, 1).eval()
    write_pointer(network, folder)
    for name in ("inference.py", "README.md", "figure.png", "config.json"):
        (folder / name).write_text("not for us")
    return network


def test_the_files_of_the_layout_are_fetched_once_and_found_without_a_network(hub):
    network = publish_talkers(hub)
    found = load_separator(f"hf:{TALKERS}")
    assert (found.sample_rate, found.sources) == (16000, ["s1", "s2"])
    assert same_weights(found.network.state_dict(), network.state_dict())
    fetched = {
        line.split()[1].split("/")[-1] for line in hub.asked if "resolve" in line
    }
    assert fetched == {"last_best_checkpoint", "last_best_checkpoint.pt"}
    hub.asked.clear()
    load_separator(f"hf:{TALKERS}@{SHA}")
    assert not [
        line for line in hub.asked if line.startswith("GET") and "/resolve/" in line
    ]
    hub.server.shutdown()
    hub.server.server_close()
    again = load_separator(f"hf:{TALKERS}").network
    assert same_weights(again.state_dict(), network.state_dict())


def test_a_download_that_breaks_off_goes_on(hub):
    publish_talkers(hub)
    size = (hub.root / TALKERS / "last_best_checkpoint.pt").stat().st_size
    hub.cuts = [size // 2]
    load_separator(f"hf:{TALKERS}")
    ranges = [line.split()[-1] for line in hub.asked if "bytes=" in line]
    assert len(ranges) == 1 and 0 < int(ranges[0][len("bytes=") : -1]) <= size // 2


@pytest.mark.parametrize(
    "place, message",
    [
        ("hf:nobody/nothing", "nobody/nothing: no such repository, or a private one"),
        (f"hf:{TALKERS}@v9", "has no revision v9"),
        ("hf:nothing", "use hf:ORGANISATION/NAME"),
        ("hf:../a@b", "use hf:ORGANISATION/NAME|Repo id"),
        ("hf:some/language-model", "no known layout.*has: model-1.gguf, run.py"),
    ],
)
def test_what_is_not_there_is_named_in_one_line(hub, capsys, place, message):
    publish_talkers(hub)
    other = hub.root / "some" / "language-model"
    other.mkdir(parents=True)
    for name in ("model-1.gguf", "run.py"):
        (other / name).write_text("x")
    with pytest.raises(PretrainedError, match=message) as error:
        load_separator(place)
    assert "\n" not in str(error.value)


def test_a_hub_that_is_not_there(hub, monkeypatch):
    publish_talkers(hub)
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(PretrainedError, match="cannot be reached .* not fetched befor"):
        load_separator(f"hf:{TALKERS}")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PretrainedError, match="cannot be reached .*not fetched") as err:
        load_separator(f"hf:{TALKERS}")
    assert "\n" not in str(err.value)


def test_the_environment_names_another_hub(hub, tmp_path):
    """In a fresh process, by HF_ENDPOINT, and nothing that it fetches is executed."""
    folder = hub.root / "my" / "stems"
    folder.mkdir(parents=True)
    mark = tmp_path / "executed"
    (folder / "custom.py").write_text(f"open({str(mark)!r}, 'w')")
    save_file({"enc.x": torch.zeros(1)}, folder / "only.safetensors")
    code = (
        "from modules.weights.hub import fetch; p = fetch('hf:my/stems')\n"
        "print(*sorted(x.name for x in p.iterdir()))"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    environment["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server.server_port}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["only.safetensors"], done.stderr
    assert not mark.exists()
