"""Fetching from a server on loopback: whole, resumed, broken, wrong, hostile."""

import hashlib
import io
import json
import re
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import helpers_data as made
import pytest

import cotmi.data.fetch
from cotmi.core import DataError
from cotmi.data.fetch import extract_archive, fetch_dss
from cotmi.data.loading import load_data


def zipped(members, **info):
    "A zip archive of names and contents; `info` sets attributes of every member."
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members:
            member = zipfile.ZipInfo(name)
            for key, value in info.items():
                setattr(member, key, value)
            archive.writestr(member, text, zipfile.ZIP_DEFLATED)
    return content.getvalue()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    "A small archive in the published layout, with text that does not compress away."
    root = tmp_path_factory.mktemp("published")
    made.svamp(root)
    made.cqa(root)
    noise = hashlib.shake_256(b"noise").hexdigest(200_000)
    (root / "cqa" / "notes.txt").write_text(noise)
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return zipped([(f"datasets/{p.relative_to(root).as_posix()}", p.read_text()) for p in files])


class Server:
    "A server with one file and the faults a test asks for."

    def __init__(self, content):
        self.content, self.requests = content, []
        self.ranges, self.tag, self.chunked = True, '"v1"', False
        self.cut_at = self.length = self.status = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                outer.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/datasets.zip"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, handler):
        self.requests.append(dict(handler.headers))
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        same = handler.headers.get("If-Range", self.tag) == self.tag
        start = int(wanted[1]) if wanted and self.ranges and same else 0
        if self.status:
            handler.send_response(self.status)
            handler.send_header("Content-Length", "0")
            return handler.end_headers()
        if start >= len(self.content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.send_header("Content-Length", "0")
            return handler.end_headers()
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.tag:
            handler.send_header("ETag", self.tag)
        if self.chunked:
            handler.send_header("Connection", "close")
        else:
            handler.send_header("Content-Length", str(self.length if self.length is not None else len(body)))
        handler.close_connection = True
        handler.end_headers()
        try:
            handler.wfile.write(body if self.cut_at is None else body[:self.cut_at])
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client had seen enough


@pytest.fixture
def server(archive):
    server = Server(archive)
    yield server
    server.http.shutdown()
    server.http.server_close()


def fetch(server, target, **options):
    return fetch_dss(target, server.url, progress=False, **options)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_full_download_can_be_loaded(server, archive, tmp_path):
    fetched = fetch(server, tmp_path / "data", sha256=hashlib.sha256(archive).hexdigest().upper())
    assert fetched.placed == ("cqa", "svamp") and fetched.kept == ()
    assert (fetched.archive_bytes, fetched.sha256) == (len(archive), hashlib.sha256(archive).hexdigest())
    assert names(tmp_path / "data") == ["cqa", "svamp"]  # neither archive nor part is left
    assert f"{len(archive):,} bytes, sha256 {fetched.sha256}" in str(fetched)
    assert load_data("svamp", data_root=tmp_path / "data").report.files["train"].read == 40


def test_a_broken_download_is_resumed(server, archive, tmp_path):
    server.cut_at = 50_000
    with pytest.raises(DataError, match="broke off.*50,000 bytes are kept.*run the command again"):
        fetch(server, tmp_path)
    assert names(tmp_path) == [".datasets.zip.part", ".datasets.zip.part.json"]
    server.cut_at = 30_000
    with pytest.raises(DataError, match="80,000 bytes are kept"):
        fetch(server, tmp_path)
    server.cut_at = None
    assert fetch(server, tmp_path).sha256 == hashlib.sha256(archive).hexdigest()
    assert [r.get("Range") for r in server.requests] == [None, "bytes=50000-", "bytes=80000-"]
    assert server.requests[1]["If-Range"] == '"v1"'
    assert names(tmp_path) == ["cqa", "svamp"]


def test_a_server_without_ranges_starts_anew(server, archive, tmp_path):
    server.cut_at, server.ranges = 50_000, False
    with pytest.raises(DataError):
        fetch(server, tmp_path)
    server.cut_at = None
    assert fetch(server, tmp_path).sha256 == hashlib.sha256(archive).hexdigest()


def test_a_file_that_changed_in_between_starts_anew(server, tmp_path):
    server.cut_at = 50_000
    with pytest.raises(DataError):
        fetch(server, tmp_path)
    server.content, server.tag, server.cut_at = zipped([("datasets/svamp/svamp_train.json", "{}")]), '"v2"', None
    assert fetch(server, tmp_path).placed == ("svamp",)


def test_a_part_of_another_address_is_not_glued_on(server, archive, tmp_path):
    (tmp_path / ".datasets.zip.part").write_bytes(b"something else")
    (tmp_path / ".datasets.zip.part.json").write_text('{"url": "http://elsewhere/x.zip", "tag": ""}')
    assert fetch(server, tmp_path).sha256 == hashlib.sha256(archive).hexdigest()
    assert "Range" not in server.requests[0]


def test_a_whole_part_is_not_downloaded_twice(server, archive, tmp_path):
    (tmp_path / ".datasets.zip.part").write_bytes(archive)
    (tmp_path / ".datasets.zip.part.json").write_text(json.dumps({"url": server.url, "tag": '"v1"'}))
    assert fetch(server, tmp_path).placed == ("cqa", "svamp")
    assert [r["Range"] for r in server.requests] == [f"bytes={len(archive)}-"]


def test_a_part_longer_than_the_file_is_thrown_away(server, archive, tmp_path):
    (tmp_path / ".datasets.zip.part").write_bytes(archive + b"more")
    (tmp_path / ".datasets.zip.part.json").write_text(json.dumps({"url": server.url, "tag": '"v1"'}))
    with pytest.raises(DataError, match="has changed since"):
        fetch(server, tmp_path)
    assert fetch(server, tmp_path).placed == ("cqa", "svamp")


def test_a_checksum_that_differs(server, archive, tmp_path):
    with pytest.raises(DataError, match=f"{hashlib.sha256(archive).hexdigest()}, expected {'0' * 64}"):
        fetch(server, tmp_path, sha256="0" * 64)
    assert names(tmp_path) == []


@pytest.mark.parametrize("status", [403, 404, 500])
def test_an_error_of_the_server(server, tmp_path, status):
    server.status = status
    with pytest.raises(DataError, match=f"answered {status}"):
        fetch(server, tmp_path)


def test_no_server(tmp_path):
    with pytest.raises(DataError, match="cannot be reached"):
        fetch_dss(tmp_path, "http://127.0.0.1:9/datasets.zip", progress=False, timeout=2)
    with pytest.raises(DataError, match="cannot be reached"):
        fetch_dss(tmp_path, "no address", progress=False)


def test_sizes_beyond_the_bounds_are_refused(server, archive, tmp_path):
    with pytest.raises(DataError, match=f"is {len(archive):,} bytes; at most 1,000 are taken"):
        fetch(server, tmp_path, max_archive_bytes=1000)
    server.length = 10**15  # announced, and never sent
    with pytest.raises(DataError, match="is 1,000,000,000,000,000 bytes"):
        fetch(server, tmp_path)
    server.chunked = True  # no size announced at all
    with pytest.raises(DataError, match="sends more than 1,000 bytes"):
        fetch(server, tmp_path, max_archive_bytes=1000)
    with pytest.raises(DataError, match="at most 20,000 of 10,000 bytes are unpacked"):
        fetch(server, tmp_path, max_extracted_bytes=10_000)
    assert names(tmp_path) == []


def test_a_bomb_is_refused_before_it_is_unpacked(server, tmp_path):
    server.content = zipped([("datasets/svamp/svamp_train.json", b"\0" * 20_000_000)])
    assert len(server.content) < 30_000
    with pytest.raises(DataError, match="20,000,000 bytes in all"):
        fetch(server, tmp_path, max_extracted_bytes=10_000_000)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["../evil", "datasets/../../evil", "/tmp/evil", "datasets\\..\\evil", "C:/evil",
                                  "a/../../evil"])
def test_members_outside_the_target_are_refused(server, tmp_path, name):
    server.content = zipped([("datasets/svamp/svamp_train.json", "{}"), (name, "evil")])
    with pytest.raises(DataError, match="points outside the target; nothing was unpacked"):
        fetch(server, tmp_path / "data")
    assert names(tmp_path / "data") == [] and names(tmp_path) == ["data"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(server, tmp_path, kind):
    server.content = zipped([("datasets/svamp", "/etc"), ("datasets/cqa/cqa_train.json", "{}")],
                            external_attr=(kind | 0o777) << 16)
    with pytest.raises(DataError, match="is a link or a device; nothing was unpacked"):
        fetch(server, tmp_path)
    assert names(tmp_path) == []


def test_too_many_members_and_twins_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    path.write_bytes(zipped([(f"svamp/svamp_{i}.json", "") for i in range(30)]))
    monkeypatch.setattr(cotmi.data.fetch, "MAX_MEMBERS", 20)
    with pytest.raises(DataError, match="holds 30 members"):
        extract_archive(path, tmp_path / "out")
    with pytest.warns(UserWarning, match="Duplicate name"):
        path.write_bytes(zipped([("svamp/a", "1"), ("svamp/a", "2")]))
    with pytest.raises(DataError, match="two members of the same name"):
        extract_archive(path, tmp_path / "out")


@pytest.mark.parametrize("content", [b"not a zip", b"version https://git-lfs.github.com/spec/v1\n"])
def test_something_else_than_an_archive(server, tmp_path, content):
    server.content = content
    with pytest.raises(DataError, match="cannot be unpacked"):
        fetch(server, tmp_path)
    assert names(tmp_path) == []


def test_a_damaged_member(server, archive, tmp_path):
    damaged = bytearray(archive)
    damaged[5000] ^= 255
    server.content = bytes(damaged)
    with pytest.raises(DataError, match="cannot be unpacked"):
        fetch(server, tmp_path)
    assert names(tmp_path) == []


def test_an_archive_of_other_things(server, tmp_path):
    server.content = zipped([("readme.txt", "hello")])
    with pytest.raises(DataError, match="holds no dataset"):
        fetch(server, tmp_path)
    assert names(tmp_path) == []


def test_what_is_there_is_kept_unless_forced(server, tmp_path):
    made.svamp(tmp_path, train=20)
    (tmp_path / "svamp" / "mine.txt").write_text("mine")
    fetched = fetch(server, tmp_path)
    assert (fetched.placed, fetched.kept) == (("cqa",), ("svamp",))
    assert (tmp_path / "svamp" / "mine.txt").exists() and "stood there already" in str(fetched)
    assert fetch(server, tmp_path, force=True).placed == ("cqa", "svamp")
    assert not (tmp_path / "svamp" / "mine.txt").exists()
    assert names(tmp_path) == ["cqa", "svamp"]


def test_nothing_is_asked_for_when_everything_is_there(server, tmp_path):
    for name in cotmi.data.fetch.DSS_DATASETS:
        (tmp_path / name).mkdir()
    assert fetch(server, tmp_path).placed == () and server.requests == []


def test_a_full_disk_keeps_the_archive(server, archive, tmp_path, monkeypatch):
    usage = cotmi.data.fetch.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cotmi.data.fetch.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(DataError, match="10 are free. Make room"):
        fetch(server, tmp_path)
    assert (tmp_path / ".datasets.zip.part").stat().st_size == len(archive)
    monkeypatch.undo()
    assert fetch(server, tmp_path).placed == ("cqa", "svamp")


def test_a_failed_move_puts_the_old_folder_back(server, tmp_path, monkeypatch):
    made.svamp(tmp_path, train=20)
    replace = cotmi.data.fetch.os.replace

    def fail_for_new(source, place):
        if "new" in str(source) and str(place).endswith("svamp"):
            raise OSError("no")
        replace(source, place)

    monkeypatch.setattr(cotmi.data.fetch.os, "replace", fail_for_new)
    with pytest.raises((OSError, DataError)):
        fetch(server, tmp_path, force=True)
    assert load_data("svamp", data_root=tmp_path).report.files["train"].read == 20


def test_the_progress_bar_shows_the_bytes(server, tmp_path, capfd):
    fetch_dss(tmp_path, server.url)
    shown = capfd.readouterr().err
    assert "datasets.zip" in shown and "100%" in shown


def test_the_target_comes_from_the_settings(server, tmp_path, monkeypatch):
    monkeypatch.setenv("COTMI_PATHS_DATA", str(tmp_path / "root"))
    assert fetch(server, None).target == (tmp_path / "root").resolve()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made"):
        fetch(server, tmp_path / "file" / "data")
