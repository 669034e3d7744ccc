"""Files that are never half there; addresses fetched from local HTTP and S3 servers."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from transformer import download, file_utils
from transformer.file_utils import cached_path, upload
from transformer.files import (
    UserError,
    atomic_write,
    file_lock,
    read_state,
    without_secrets,
    write_state,
)

ROOT = Path(__file__).resolve().parents[1]
CONTENT = bytes(range(256)) * 4096  # 1 MiB
BLOCK = download.BLOCK_BYTES


@dataclass
class Site:
    """What the test server serves, how it misbehaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    commit: str = ""  # of the repositories of a hub
    redirects: dict[str, str] = field(default_factory=dict)
    drop_after: list[int] = field(default_factory=list)  # bytes, one entry a GET
    ranges: bool = True
    head_status: int = 200
    token: str = ""
    busy: int = 0  # how many answers are 503
    delay: float = 0  # seconds before a file is sent
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    address: str = ""

    def asked(self, method: str) -> list[str]:
        return [path for verb, path, _ in self.requests if verb == method]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def site(self) -> Site:
        return self.server.site  # type: ignore[attr-defined]

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        site, path = self.site, self.path.partition("?")[0]
        site.requests.append((self.command, path, self.headers.get("Range", "")))
        if site.busy:
            site.busy -= 1
            self.empty(503)
        elif path in site.redirects:
            linked = {"X-Linked-ETag": site.etags[path]} if path in site.etags else {}
            self.empty(302, Location=site.redirects[path], **linked)
        elif site.token and self.headers.get("Authorization") != f"Bearer {site.token}":
            self.empty(401)
        elif path not in site.files:
            self.empty(404)
        elif self.command == "HEAD" and site.head_status != 200:
            self.empty(site.head_status)
        else:
            self.send_file(site.files[path], site.etags.get(path, f'"{len(site.files[path])}"'))

    def end_headers(self) -> None:
        if self.site.commit:
            self.send_header("X-Repo-Commit", self.site.commit)
        super().end_headers()

    def empty(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_file(self, content: bytes, etag: str) -> None:
        wanted = self.headers.get("Range")
        start = 0
        if wanted and self.site.ranges and self.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", etag)
        self.end_headers()
        if self.command == "HEAD":
            return
        threading.Event().wait(self.site.delay)
        body = content[start:]
        if self.site.drop_after:
            self.wfile.write(body[: self.site.drop_after.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(body)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    """Serve files on a free port; the cache and the hub settings of the user are out of reach."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between two tries
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = Site(address=f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server.site  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


# --- atomic_write -------------------------------------------------------------------------------


def test_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_write(path) as file:
        file.write("é\n")
        assert not path.exists()
    assert path.read_bytes() == b"\xc3\xa9\n"
    with atomic_write(path, "wb") as file:
        file.write(b"2")
    assert path.read_bytes() == b"2"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_atomic_write_keeps_the_old_file_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write("new" * 10000)
        file.write(str(1 / 0))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_atomic_write_killed_midway_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import os, signal\nfrom transformer.file_utils import atomic_write\n"
        f"with atomic_write({str(path)!r}) as file:\n"
        "    file.write('new' * 100000); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    leftovers = [name for name in os.listdir(tmp_path) if name != "a.txt"]
    assert len(leftovers) == 1
    with atomic_write(path) as file:
        file.write("next")
    assert leftovers[0] in os.listdir(tmp_path), "another process may still be writing it"
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(tmp_path / leftovers[0], (two_days_ago, two_days_ago))
    with atomic_write(path) as file:
        file.write("last")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_atomic_write_honours_umask_modes_and_links(tmp_path: Path) -> None:
    code = (
        "import os; os.umask(0o027)\nfrom transformer.file_utils import atomic_write\n"
        f"with atomic_write({str(tmp_path / 'new')!r}) as file: file.write('x')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
    (tmp_path / "new").chmod(0o604)
    (tmp_path / "link").symlink_to("new")
    with atomic_write(tmp_path / "link") as file:
        file.write("through")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "new").read_text() == "through"
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o604


def test_atomic_write_refuses_to_append(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode 'a'"), atomic_write(tmp_path / "a", "a"):
        pass


# --- local paths --------------------------------------------------------------------------------


def test_local_paths_are_returned_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("x")
    assert cached_path(file) == file
    assert cached_path(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["./no/such", "/no/such/dir", "a/b/c", "no such", "org/"])
def test_what_cannot_be_a_hub_name_is_not_asked_for(site: Site, name: str) -> None:
    with pytest.raises(UserError, match="no such file or directory"):
        cached_path(name)
    assert not site.requests


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(UserError, match="ftp://host/x: unknown kind of address"):
        cached_path("ftp://host/x")


def test_network_packages_are_not_imported_for_local_work(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom transformer.file_utils import cached_path, upload\n"
        f"cached_path({str(tmp_path)!r}); upload({str(tmp_path)!r}, {str(tmp_path / 'x')!r})\n"
        "print([n for n in ('requests', 'boto3', 'botocore') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


# --- HTTP ---------------------------------------------------------------------------------------


def test_http_file_is_fetched_once(site: Site, tmp_path: Path) -> None:
    site.files["/a/model.bin"] = CONTENT
    first = cached_path(f"{site.address}/a/model.bin", tmp_path / "cache")
    assert first.name == "model.bin"
    assert first.read_bytes() == CONTENT
    assert (tmp_path / "cache") in first.parents
    assert cached_path(f"{site.address}/a/model.bin", tmp_path / "cache") == first
    # A command line parser that makes paths of its arguments swallows a slash.
    assert cached_path(Path(f"{site.address}/a/model.bin"), tmp_path / "cache") == first
    assert len(site.asked("GET")) == 1


def test_http_file_that_changed_is_fetched_again(site: Site, tmp_path: Path) -> None:
    site.files["/x"] = b"one"
    site.etags["/x"] = '"1"'
    cached_path(f"{site.address}/x", tmp_path)
    site.files["/x"], site.etags["/x"] = b"two", '"2"'
    assert cached_path(f"{site.address}/x", tmp_path).read_bytes() == b"two"


def test_dropped_connection_is_resumed(site: Site, tmp_path: Path) -> None:
    site.files["/x"] = CONTENT
    site.drop_after = [4 * BLOCK + 9, 0, 3 * BLOCK]
    assert cached_path(f"{site.address}/x", tmp_path).read_bytes() == CONTENT
    ranges = [wanted for method, _, wanted in site.requests if method == "GET"]
    expected = [f"bytes={blocks * BLOCK}-" for blocks in (4, 4, 7)]
    assert ranges == ["", *expected], "at most one block is fetched twice"


def test_download_goes_on_in_the_next_run(site: Site, tmp_path: Path) -> None:
    site.files["/x"] = CONTENT
    site.drop_after = [8 * BLOCK] + [0] * download.ATTEMPTS
    with pytest.raises(UserError, match=r"/x: the connection .* at byte 524,288; start again"):
        cached_path(f"{site.address}/x", tmp_path)
    assert not list(tmp_path.rglob("x")), "half a file must not have the name of the whole"
    site.requests.clear()
    site.drop_after.clear()
    assert cached_path(f"{site.address}/x", tmp_path).read_bytes() == CONTENT
    assert [wanted for *_, wanted in site.requests] == ["", f"bytes={8 * BLOCK}-"]
    assert not list(tmp_path.rglob("*.part"))


def test_part_of_an_older_version_is_not_used(site: Site, tmp_path: Path) -> None:
    site.files["/x"], site.etags["/x"] = CONTENT, '"old"'
    site.drop_after = [8 * BLOCK] + [0] * download.ATTEMPTS
    with pytest.raises(UserError):
        cached_path(f"{site.address}/x", tmp_path)
    site.drop_after.clear()
    site.files["/x"], site.etags["/x"] = CONTENT[::-1], '"new"'
    assert cached_path(f"{site.address}/x", tmp_path).read_bytes() == CONTENT[::-1]
    assert not list(tmp_path.rglob("*.part"))


def test_server_without_ranges_sends_everything_again(site: Site, tmp_path: Path) -> None:
    site.files["/x"] = CONTENT
    site.ranges = False
    site.drop_after = [300_000]
    assert cached_path(f"{site.address}/x", tmp_path).read_bytes() == CONTENT


def test_server_that_refuses_head_is_asked_with_get(site: Site, tmp_path: Path) -> None:
    site.files["/x"] = CONTENT
    site.head_status = 403
    assert cached_path(f"{site.address}/x", tmp_path).read_bytes() == CONTENT


def test_redirects_are_followed(site: Site, tmp_path: Path) -> None:
    site.files["/storage/1"] = b"content"
    site.redirects["/name.bin"] = "/storage/1"
    path = cached_path(f"{site.address}/name.bin", tmp_path)
    assert (path.name, path.read_bytes()) == ("name.bin", b"content")


@pytest.mark.parametrize("where", ["etag", "linked", "fragment"])
def test_hash_is_checked(site: Site, tmp_path: Path, where: str) -> None:
    right, wrong = (hashlib.sha256(text).hexdigest() for text in (b"content", b"other"))
    site.files["/storage/1"] = b"content"
    site.redirects["/x"] = "/storage/1"

    def address(digest: str) -> str:
        if where == "fragment":
            return f"{site.address}/x#sha256={digest}"
        site.etags["/storage/1" if where == "etag" else "/x"] = f'"{digest}"'
        return f"{site.address}/x"

    with pytest.raises(UserError, match=f"/x: sha256 {right} differs from the announced {wrong}"):
        cached_path(address(wrong), tmp_path)
    assert not list(tmp_path.rglob("x"))
    assert cached_path(address(right), tmp_path).read_bytes() == b"content"


def test_busy_server_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.files["/x"] = b"content"
    site.busy = 2
    assert cached_path(f"{site.address}/x", tmp_path).read_bytes() == b"content"


def test_http_errors_name_address_and_reason(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{site.address}/none: 404, no such file"):
        cached_path(f"{site.address}/none", tmp_path)
    site.token = "secret"
    with pytest.raises(UserError, match="/none: 401, no permission.*HF_TOKEN"):
        cached_path(f"{site.address}/none", tmp_path)
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/x: no answer .*refused"):
        cached_path("http://127.0.0.1:9/x", tmp_path)


def test_secrets_of_an_address_are_never_shown(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    host = site.address.removeprefix("http://")
    site.files["/x.bin"] = b"content"
    path = cached_path(f"http://me:pass-word@{host}/x.bin?X-Signature=sig-nature", tmp_path)
    assert path.name == "x.bin"
    messages = [str(path)]
    for url in (
        f"http://me:pass-word@{host}/none?X-Signature=sig-nature",
        "http://me:pass-word@127.0.0.1:9/x?X-Signature=sig-nature",
        "http://me:pass-word@/x?X-Signature=sig-nature",
        "ftp://me:pass-word@host/x?X-Signature=sig-nature",
    ):
        with pytest.raises(UserError) as caught:
            cached_path(url, tmp_path)
        messages.append(str(caught.value))
    own = [record.getMessage() for record in caplog.records if record.name[:11] == "transformer"]
    for text in (*messages, *own):
        assert "pass-word" not in text and "sig-nature" not in text, text
    assert f"http://{host}/x.bin?..." in " ".join(own)


def test_without_secrets() -> None:
    assert (
        without_secrets("see https://a:b@c@h/x?k=1#f, s3://b/k")
        == "see https://h/x?...#f, s3://b/k"
    )
    assert without_secrets("https:/a:b@h/x") == "https:/h/x"  # what pathlib makes of an address
    assert without_secrets("/data/a@b?c") == "/data/a@b?c"


def test_unreachable_server_leaves_the_cached_file_usable(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site.files["/x"] = b"content"
    path = cached_path(f"{site.address}/x", tmp_path)
    site.busy = 10**6
    assert cached_path(f"{site.address}/x", tmp_path) == path
    assert "503" in caplog.text and "using the copy" in caplog.text
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    site.requests.clear()
    assert cached_path(f"{site.address}/x", tmp_path) == path
    with pytest.raises(UserError, match="y is not there, and HF_HUB_OFFLINE"):
        cached_path(f"{site.address}/y", tmp_path)
    assert not site.requests


def test_two_processes_fetch_a_file_once(site: Site, tmp_path: Path) -> None:
    site.files["/x"] = CONTENT
    site.delay = 1.0
    code = (
        "from transformer.file_utils import cached_path\n"
        f"print(cached_path('{site.address}/x', {str(tmp_path)!r}).stat().st_size)"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [run.communicate(timeout=60)[0].strip() for run in runs] == [str(len(CONTENT))] * 3
    assert len(site.asked("GET")) == 1


def test_lock_is_released_when_its_holder_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / ".x.lock"
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom transformer.files import file_lock\n"
        f"with file_lock(Path({str(lock)!r}), ''): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert lock.exists()
    with file_lock(lock, "a process that is dead"):
        pass


def test_a_state_is_what_was_written_or_an_error(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert read_state(path) is None
    content = {"text": "größe \udcff", "numbers": {10: 0.1, 9: float("nan")}, "none": None}
    write_state(path, content)
    assert json.dumps(read_state(path)) == json.dumps(content)
    written = path.read_text()
    for damaged in (written.replace("0.1", "0.2"), written.replace("null", '"x"'), "{}", "3", "{"):
        path.write_text(damaged)
        with pytest.raises(UserError, match="state.json: "):
            read_state(path)


def test_lock_can_be_taken_by_whoever_may_write_beside_it(tmp_path: Path) -> None:
    """The first user's umask must not keep the second out of a cache that both may write."""
    tmp_path.chmod(0o777)
    code = (
        "import os; os.umask(0o077)\nfrom transformer.files import file_lock\n"
        f"with file_lock({str(tmp_path / 'lock')!r}, ''): pass"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o666


# --- archives -----------------------------------------------------------------------------------


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_of(members: dict[str, bytes], link: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        if link:
            entry = tarfile.TarInfo("link")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            archive.addfile(entry)
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "pack"), [("m.zip", zip_of), ("m.tar.gz", tar_of)])
def test_archive_is_unpacked(site: Site, tmp_path: Path, name: str, pack) -> None:
    site.files[f"/{name}"] = pack({"bert/config.json": b"{}", "bert/sub/vocab.txt": b"x"})
    path = cached_path(f"{site.address}/{name}", tmp_path)
    assert path.name == "bert"
    assert (path / "sub" / "vocab.txt").read_bytes() == b"x"
    assert cached_path(f"{site.address}/{name}", tmp_path) == path
    local = tmp_path / name
    local.write_bytes(pack({"config.json": b"{}", "vocab.txt": b"x"}))
    assert sorted(os.listdir(cached_path(local, tmp_path / "c"))) == ["config.json", "vocab.txt"]


@pytest.mark.parametrize("member", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:\\evil"])
@pytest.mark.parametrize(("name", "pack"), [("m.zip", zip_of), ("m.tar.gz", tar_of)])
def test_archive_cannot_write_outside(tmp_path: Path, member: str, name: str, pack) -> None:
    local = tmp_path / name
    local.write_bytes(pack({"ok": b"x", member: b"evil"}))
    with pytest.raises(UserError, match="would lie outside"):
        cached_path(local, tmp_path / "deep" / "cache")
    assert not list(tmp_path.rglob("*evil*"))
    assert not list(tmp_path.rglob("ok")), "a refused archive leaves nothing"


def test_archive_with_a_link_or_cut_short_is_refused(tmp_path: Path) -> None:
    local = tmp_path / "m.tar.gz"
    local.write_bytes(tar_of({}, link="/etc"))
    with pytest.raises(UserError, match="'link' is not a plain file"):
        cached_path(local, tmp_path / "c")
    local.write_bytes(tar_of({"a": os.urandom(5000)})[:2000])
    with pytest.raises(UserError, match="not a whole archive"):
        cached_path(local, tmp_path / "c")
    broken = tmp_path / "m.zip"
    broken.write_bytes(zip_of({"a": b"x" * 100})[:60])
    with pytest.raises(UserError, match="not a whole archive"):
        cached_path(broken, tmp_path / "c")


@pytest.mark.parametrize(("name", "pack"), [("m.zip", zip_of), ("m.tar.gz", tar_of)])
def test_archive_damaged_inside_is_refused(tmp_path: Path, name: str, pack) -> None:
    local = tmp_path / name
    content = bytearray(pack({"config.json": b"{}", "weights": os.urandom(50_000)}))
    content[20_000:20_050] = bytes(50)
    local.write_bytes(content)
    with pytest.raises(UserError, match="not a whole archive .*; fetch it again"):
        cached_path(local, tmp_path / "c")
    assert not [
        path for path in (tmp_path / "c").rglob("*") if path.is_file() and path.stat().st_size
    ]


def test_tar_without_its_end_or_with_a_bad_header_is_refused(tmp_path: Path) -> None:
    local = tmp_path / "m.tar.gz"
    content = gzip.decompress(tar_of({"a": b"a" * 512, "b": b"b" * 512}))
    for damaged in (
        content[:2048],  # both members, without the blocks of zeros
        content[:1024] + b"\xff" + content[1025:],  # the second header
    ):
        local.write_bytes(gzip.compress(damaged))
        with pytest.raises(UserError, match="not a whole archive"):
            cached_path(local, tmp_path / "c")


def test_encrypted_and_unknown_compression_are_refused(tmp_path: Path) -> None:
    local = tmp_path / "m.zip"
    plain = zip_of({"a": b"text"})
    at = plain.index(b"PK\x01\x02")  # the entry of the directory: flags at 8, method at 10
    encrypted = bytearray(plain)
    encrypted[6] |= 1
    encrypted[at + 8] |= 1
    local.write_bytes(encrypted)
    with pytest.raises(UserError, match="'a' is encrypted; unpack it yourself"):
        cached_path(local, tmp_path / "c")
    deflate64 = bytearray(plain)
    deflate64[8] = deflate64[at + 10] = 9
    local.write_bytes(deflate64)
    with pytest.raises(UserError, match=r"m\.zip: .*compression.*pack it again with Deflate"):
        cached_path(local, tmp_path / "c")


def test_zip_that_hides_a_member_is_refused(tmp_path: Path) -> None:
    """A damaged length makes one entry of the directory swallow the next as its comment."""
    local = tmp_path / "m.zip"
    content = bytearray(zip_of({"a": b"1", "b": b"2"}))
    first = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", first + 1)
    content[first + 32] = len(content) - 22 - second  # the length of the comment of "a"
    local.write_bytes(content)
    assert zipfile.ZipFile(local).namelist() == ["a"]
    with pytest.raises(UserError, match="lists fewer files than there are"):
        cached_path(local, tmp_path / "c")


@pytest.mark.parametrize("name", ["m.zip", "m.tar.gz"])
def test_bomb_is_not_unpacked(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer import archives

    monkeypatch.setattr(archives, "ALWAYS_ALLOWED_BYTES", 1 << 20)
    local, zeros = tmp_path / name, bytes(8 << 20)
    if name == "m.zip":
        with zipfile.ZipFile(local, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a", zeros)
    else:
        local.write_bytes(tar_of({"a": zeros}))
    with pytest.raises(UserError, match="would unpack to more than .* unpack it yourself"):
        cached_path(local, tmp_path / "c")
    assert not list(tmp_path.rglob("a"))


@pytest.mark.parametrize(("name", "pack"), [("m.zip", zip_of), ("m.tar.gz", tar_of)])
@pytest.mark.parametrize(("umask", "modes"), [(0o077, (0o700, 0o600)), (0o002, (0o775, 0o664))])
def test_unpacked_files_obey_the_umask(
    tmp_path: Path, name: str, pack, umask: int, modes: tuple[int, int]
) -> None:
    local = tmp_path / name
    local.write_bytes(pack({"bert/config.json": b"{}", "vocab.txt": b"x"}))
    code = (
        f"import os; os.umask({umask})\nfrom transformer.file_utils import cached_path\n"
        f"print(cached_path({str(local)!r}, {str(tmp_path / 'c')!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    path = Path(done.stdout.strip())
    for place in (path, *path.rglob("*")):
        assert place.stat().st_mode & 0o777 == modes[place.is_file()], place


# --- hub names ----------------------------------------------------------------------------------


def put_on_hub(site: Site, name: str, files: dict[str, bytes], revision: str = "main") -> None:
    """Serve a repository as the hub's API does: what a revision is, what it holds, its files."""
    site.commit = hashlib.sha1(f"{name} {revision} {sorted(files)}".encode()).hexdigest()
    about = {"id": name, "sha": site.commit, "siblings": [{"rfilename": file} for file in files]}
    tree = [
        {"type": "file", "path": file, "size": len(content), "oid": file}
        for file, content in files.items()
    ]
    site.files[f"/api/models/{name}/revision/{revision}"] = json.dumps(about).encode()
    site.files[f"/api/models/{name}/tree/{site.commit}"] = json.dumps(tree).encode()
    for file, content in files.items():
        path = f"/{name}/resolve/{site.commit}/{file}"
        site.files[path], site.etags[path] = content, f'"{file}-{site.commit}"'


@pytest.fixture
def hub(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    monkeypatch.setenv("HF_ENDPOINT", site.address + "/")
    monkeypatch.chdir(tmp_path)
    return site


BERT = {"config.json": b"{}", "vocab.txt": b"[PAD]\n", "pytorch_model.bin": CONTENT}


@pytest.mark.parametrize("name", ["bert-base-uncased", "org/some.name_1"])
def test_hub_name_brings_what_is_needed(hub: Site, tmp_path: Path, name: str) -> None:
    put_on_hub(hub, name, {**BERT, "tf_model.h5": b"no", "tokenizer.json": b"no"})
    path = cached_path(name)
    assert (tmp_path / "hf_home") in path.parents
    assert {file: (path / file).read_bytes() for file in BERT} == BERT
    visible = sorted(file for file in os.listdir(path) if not file.startswith("."))
    assert visible == sorted(BERT)


def test_hub_prefers_safetensors(hub: Site) -> None:
    put_on_hub(hub, "m", {**BERT, "model.safetensors": b"s"})
    assert not (cached_path("m") / "pytorch_model.bin").exists()


def test_hub_brings_all_shards(hub: Site) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    shards = {"model-1.safetensors": b"1", "model-2.safetensors": b"2"}
    files = {name: BERT[name] for name in ("config.json", "vocab.txt")}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    put_on_hub(hub, "m", {**files, **shards})
    path = cached_path("m")
    assert {name: (path / name).read_bytes() for name in shards} == shards


def test_hub_shards_cannot_leave_the_directory(hub: Site) -> None:
    index = {"weight_map": {"a": "../../evil.safetensors"}}
    files = {name: BERT[name] for name in ("config.json", "vocab.txt")}
    put_on_hub(hub, "m", {**files, "model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(UserError, match="is no file name"):
        cached_path("m")


def test_hub_brings_only_the_files_asked_for(hub: Site) -> None:
    put_on_hub(hub, "m", BERT)
    path = cached_path("m", files=("vocab.txt", "tokenizer.json"))
    assert (path / "vocab.txt").exists() and not (path / "pytorch_model.bin").exists()
    with pytest.raises(UserError, match="has no none.txt"):
        cached_path("m", files=("none.txt",))


def test_hub_token_is_sent(hub: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_hub(hub, "m", BERT)
    hub.token = "secret"
    with pytest.raises(UserError, match="401, no permission or no such repository"):
        cached_path("m")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert (cached_path("m") / "config.json").exists()


def test_hub_error_says_both_things_that_were_tried(hub: Site) -> None:
    with pytest.raises(UserError, match=r"^typo: no such file or directory here; .*/typo: has no"):
        cached_path("typo")
    put_on_hub(hub, "only-tf", {"config.json": b"{}", "vocab.txt": b"", "tf_model.h5": b""})
    with pytest.raises(UserError, match="has no model.safetensors or .*pytorch_model.bin"):
        cached_path("only-tf")


def test_hub_offline_uses_the_cache(
    hub: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    put_on_hub(hub, "m", BERT)
    path = cached_path("m")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert cached_path("m") == path
    assert "no answer from" not in caplog.text, "what is there whole is not asked for"
    with pytest.raises(UserError, match=r"127.0.0.1:9/n/.*: no answer .* there is no config.json"):
        cached_path("n")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    caplog.clear()
    assert cached_path("m") == path
    assert not caplog.text
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set; and there is no config.json"):
        cached_path("n")


def test_hub_files_of_other_libraries_are_used(hub: Site, tmp_path: Path) -> None:
    repository = tmp_path / "hf_home" / "hub" / "models--org--m"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    for name, content in BERT.items():
        (snapshot / name).write_bytes(content)
    assert cached_path("org/m") == snapshot
    assert not hub.requests
    (snapshot / "pytorch_model.bin").unlink()
    put_on_hub(hub, "org/m", BERT)
    assert cached_path("org/m") != snapshot


def test_hub_cache_is_shared_with_other_libraries(hub: Site, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    put_on_hub(hub, "org/m", BERT)
    path = cached_path("org/m")
    shared = tmp_path / "hf_home" / "hub"
    assert snapshot_download("org/m", cache_dir=shared, local_files_only=True) == str(path)


def test_hub_revision_follows_the_name(hub: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    put_on_hub(hub, "org/m", {**BERT, "vocab.txt": b"old"}, revision="v1.0")
    path = cached_path("org/m@v1.0")
    assert (path / "vocab.txt").read_bytes() == b"old"
    assert cached_path("org/m@v1.0") == path
    assert f"org/m@v1.0: using revision {hub.commit}" in caplog.text
    assert "HTTP Request" not in caplog.text, "the addresses of files may be signed"
    with pytest.raises(UserError, match="org/m: has no config.json .* at revision v2"):
        cached_path("org/m@v2")


def test_hub_token_of_a_login_is_used(hub: Site, tmp_path: Path) -> None:
    put_on_hub(hub, "m", BERT)
    hub.token = "stored"
    (tmp_path / "hf_home").mkdir()
    (tmp_path / "hf_home" / "token").write_text("stored")
    code = "from transformer.file_utils import cached_path; print(cached_path('m'))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert (Path(done.stdout.strip()) / "config.json").exists()
    assert "Fetching" not in done.stderr, "bars are for terminals"


# --- S3 -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3_address() -> Iterator[str]:
    """Run a local S3 server."""
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(site: Site, s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give an empty bucket."""
    boto3 = pytest.importorskip("boto3")
    requests = pytest.importorskip("requests")
    for name, value in (
        ("AWS_ENDPOINT_URL", s3_address),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_MAX_ATTEMPTS", "1"),
    ):
        monkeypatch.setenv(name, value)
    requests.post(f"{s3_address}/moto-api/reset", timeout=10)
    return boto3.resource("s3").create_bucket(Bucket="models")


def test_s3_prefix_and_object(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {**BERT, "optimizer.pt": b"no", "step_10/config.json": b"no"}.items():
        bucket.put_object(Key=f"bert/a/{name}", Body=content)
    bucket.put_object(Key="bert/a-other/config.json", Body=b"no")
    path = cached_path("s3://models/bert/a/", tmp_path)
    visible = sorted(name for name in os.listdir(path) if not name.startswith("."))
    assert visible == sorted(BERT)
    assert (path / "pytorch_model.bin").read_bytes() == CONTENT
    assert cached_path("s3://models/bert/a/vocab.txt", tmp_path).read_bytes() == BERT["vocab.txt"]
    only = cached_path("s3://models/bert/a", tmp_path / "c", files=("vocab.txt",))
    assert [name for name in os.listdir(only) if not name.startswith(".")] == ["vocab.txt"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert cached_path("s3://models/bert/a/", tmp_path) == path


def test_s3_download_that_breaks_is_tried_again_and_never_half_there(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import IncompleteReadError
    from botocore.response import StreamingBody

    bucket.put_object(Key="x.bin", Body=CONTENT)
    breaks = iter([True] * 2)
    read = StreamingBody.read

    def read_that_breaks(body: StreamingBody, amt: int | None = None) -> bytes:
        if next(breaks, False):
            raise IncompleteReadError(actual_bytes=1, expected_bytes=2)
        return read(body, amt)

    monkeypatch.setattr(StreamingBody, "read", read_that_breaks)
    assert cached_path("s3://models/x.bin", tmp_path).read_bytes() == CONTENT
    breaks = iter([True] * 1000)
    with pytest.raises(UserError, match="s3://models/x.bin: .*1 read, but"):
        cached_path("s3://models/x.bin", tmp_path / "other")
    assert not [path for path in (tmp_path / "other").rglob("*") if path.name == "x.bin"]


def test_s3_object_that_changed_is_fetched_again(bucket: Any, tmp_path: Path) -> None:
    bucket.put_object(Key="m/vocab.txt", Body=b"one")
    cached_path("s3://models/m", tmp_path)
    bucket.put_object(Key="m/vocab.txt", Body=b"two")  # as long, and within one second
    assert (cached_path("s3://models/m", tmp_path) / "vocab.txt").read_bytes() == b"two"


def test_s3_errors_name_address_and_reason(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="s3://none/x: NoSuchBucket"):
        cached_path("s3://none/x", tmp_path)
    with pytest.raises(UserError, match="s3://models/none: holds no file"):
        cached_path("s3://models/none", tmp_path)
    with pytest.raises(UserError, match="names no bucket"):
        cached_path("s3://", tmp_path)
    with pytest.raises(UserError, match="holds no user and password"):
        cached_path("s3://me:word@models/x", tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="s3://models/x: no answer"):
        cached_path("s3://models/x", tmp_path)


def checkpoint(directory: Path) -> Path:
    (directory / "sub").mkdir(parents=True)
    for name in ("config.json", "vocab.txt", "sub/config.json", ".hidden.tmp"):
        (directory / name).write_text(name)
    return directory


def test_upload_to_s3(bucket: Any, tmp_path: Path) -> None:
    assert upload(checkpoint(tmp_path / "out"), "s3://models/runs/1/")
    keys = sorted(entry.key for entry in bucket.objects.all())
    assert keys == ["runs/1/config.json", "runs/1/sub/config.json", "runs/1/vocab.txt"]
    assert upload(tmp_path / "out" / "vocab.txt", "s3://models")
    assert bucket.Object("vocab.txt").get()["Body"].read() == b"vocab.txt"


def test_config_is_uploaded_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(file_utils, "_put", lambda file, url, name: order.append(name))
    assert upload(checkpoint(tmp_path / "out"), "anywhere")
    assert order == ["vocab.txt", "config.json", "sub/config.json"]


def test_upload_to_a_directory_and_again(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "out")
    assert upload(source, str(tmp_path / "copy"))
    (source / "vocab.txt").write_text("new")
    assert upload(source, str(tmp_path / "copy"))
    copied = {
        path.relative_to(tmp_path / "copy").as_posix(): path.read_text()
        for path in (tmp_path / "copy").rglob("*")
        if path.is_file()
    }
    assert copied == {
        "config.json": "config.json",
        "sub/config.json": "sub/config.json",
        "vocab.txt": "new",
    }


def test_failed_upload_is_a_warning_and_can_be_repeated(
    bucket: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = checkpoint(tmp_path / "out")
    caplog.set_level(logging.WARNING)
    assert upload(source, "s3://nobucket/x") is False
    assert "not uploaded to s3://nobucket/x, will be tried again" in caplog.text
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert upload(source, str(blocked)) is False
    blocked.unlink()
    assert upload(source, str(blocked)) is True
    with pytest.raises(UserError, match="--data_url ftp://x"):
        upload(source, "ftp://x")
