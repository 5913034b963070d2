"""Reads that fail, hang, change or come back short; the cache of what was read; files as objects."""

from __future__ import annotations

import http.server
import pickle
import threading
import time
from collections import Counter

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from vlm_jax.data import storage as module
from vlm_jax.data.files import find_files
from vlm_jax.data.sources.parquet import Parquet
from vlm_jax.data.storage import File, NoRoom, Storage, local_file, within
from vlm_jax.errors import UserError

DATA = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds that were waited between tries, without waiting them."""
    waited = []
    monkeypatch.setattr(module.time, "sleep", waited.append)
    return waited


@pytest.fixture
def storage(tmp_path):
    return Storage(cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def remote():
    fs = fsspec.filesystem("memory")
    fs.pipe("/bucket/data.bin", DATA)
    (file,) = find_files("memory:///bucket/data.bin", (".bin",))
    yield file
    fs.rm("/bucket", recursive=True)


def reads(monkeypatch, answer) -> list:
    """Lets `answer(number of the read, what is asked for)` stand before each read of a bucket."""
    asked = []
    cat_file = MemoryFileSystem.cat_file

    def cat(self, path, start=None, end=None, **more):
        asked.append((start, end))
        return answer(len(asked), lambda: cat_file(self, path, start, end, **more))

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat)
    return asked


def test_parts_of_a_file(tmp_path, storage, remote):
    (tmp_path / "data.bin").write_bytes(DATA)
    for file in (local_file(tmp_path / "data.bin"), remote):
        assert file.size == len(DATA) and file.name == "data.bin"
        assert storage.read(file) == DATA
        assert storage.read(file, 300, 1000) == DATA[300:1000]
        assert storage.read(file, 7, 7) == storage.read(file, 9, 3) == b""
        assert storage.local(file).read_bytes() == DATA


def test_whole_files_by_path(tmp_path, storage, remote, monkeypatch):
    (tmp_path / "data.bin").write_bytes(DATA)
    assert storage.fetch(str(tmp_path / "data.bin")) == DATA
    asked = reads(monkeypatch, lambda number, read: read())
    assert storage.fetch(remote.path) == storage.fetch(remote.path) == DATA and len(asked) == 1
    for path in (str(tmp_path / "none"), "memory:///bucket/none"):
        with pytest.raises(FileNotFoundError):
            storage.fetch(path)


def test_what_was_read_once_is_kept(monkeypatch, storage, remote):
    asked = reads(monkeypatch, lambda number, read: read())
    for _ in range(3):
        assert storage.read(remote, 10, 20) == DATA[10:20]
        assert pickle.loads(pickle.dumps(storage)).read(remote, 10, 20) == DATA[10:20]
    assert asked == [(10, 20)]
    storage.read(remote, 10, 21)
    storage.read(remote, 10, 20, keep=False)
    assert len(asked) == 3
    keeps_nothing = Storage(storage.cache_dir + "/none", cache_gb=0)
    assert keeps_nothing.read(remote, 10, 20) == keeps_nothing.read(remote, 10, 20) == DATA[10:20]
    assert len(asked) == 5


def test_a_new_version_is_read_anew(storage, remote):
    assert storage.read(remote, 0, 4) == DATA[:4] and storage.local(remote).read_bytes() == DATA
    fsspec.filesystem("memory").pipe("/bucket/data.bin", DATA[::-1])
    (changed,) = find_files(remote.path, (".bin",))
    assert storage.read(changed, 0, 4) == DATA[::-1][:4] and storage.local(changed).read_bytes() == DATA[::-1]


def test_a_file_is_fetched_whole_once_and_in_pieces(monkeypatch, storage, remote):
    asked = reads(monkeypatch, lambda number, read: read())
    monkeypatch.setattr(module, "PIECE", 4000)
    assert storage.local(remote) == storage.local(remote)
    assert asked == [(0, 4000), (4000, 8000), (8000, 10240)]
    with pytest.raises(UserError, match=r"cache_gb=5e-06: raise that, or mount the bucket"):
        Storage(storage.cache_dir, cache_gb=5e-6).local(remote)


def test_a_read_that_fails_is_tried_again(monkeypatch, storage, remote, waits):
    def answer(number, read):
        if number < 4:
            raise ConnectionResetError("reset by peer")
        return read()

    asked = reads(monkeypatch, answer)
    assert storage.read(remote, 0, 9) == DATA[:9]
    assert len(asked) == 4
    for wait, expected in zip(waits, (1.0, 4.0, 16.0), strict=True):
        assert 0.75 * expected <= wait <= 1.25 * expected


def test_a_read_that_goes_on_failing_stops_the_run(monkeypatch, storage, remote, waits):
    def answer(number, read):
        raise RuntimeError("503 Service Unavailable\n<html>...</html>")

    asked = reads(monkeypatch, answer)
    with pytest.raises(UserError, match=r"data\.bin cannot be read after 5 tries \(503 Service Unavailable\)") as error:
        storage.read(remote, 0, 9)
    assert len(asked) == 5 and len(waits) == 4 and "\n" not in str(error.value)
    assert error.value.code == 1 and sum(waits) > 60  # launchers start it again, and not at once


def test_a_bucket_that_does_not_answer(monkeypatch, remote, tmp_path):
    silent = threading.Event()

    def answer(number, read):
        if number < 3:
            silent.wait(60)
        return read()

    asked = reads(monkeypatch, answer)
    patient = Storage(cache_dir=str(tmp_path), timeout_s=0.05)
    assert patient.read(remote, 0, 9) == DATA[:9]
    assert len(asked) == 3
    with pytest.raises(UserError, match=r"after 1 tries \(no answer in 0\.05 s\)"):
        reads(monkeypatch, lambda number, read: silent.wait(60))
        Storage(cache_dir=str(tmp_path), timeout_s=0.05, tries=1).read(remote, 5, 9)
    silent.set()


def test_a_short_answer_is_none(monkeypatch, storage, remote):
    reads(monkeypatch, lambda number, read: read()[: 3 if number == 1 else None])
    assert storage.read(remote, 0, 9) == DATA[:9]


def test_a_file_that_shrank_or_went(tmp_path, storage, remote, waits):
    path = tmp_path / "data.bin"
    path.write_bytes(DATA)
    file = local_file(path)
    path.write_bytes(DATA[:100])
    assert storage.read(file, 50, 100) == DATA[50:100]
    with pytest.raises(UserError, match="got 50 bytes where 100 were asked for"):
        storage.read(file, 50, 150)
    path.unlink()
    fsspec.filesystem("memory").rm("/bucket/data.bin")
    waits.clear()
    for gone in (file, remote):
        with pytest.raises(FileNotFoundError):
            storage.read(gone, 0, 9)
    assert not waits
    fsspec.filesystem("memory").pipe("/bucket/data.bin", DATA)  # for the fixture to remove


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path, remote):
    (tmp_path / "file").touch()
    storage = Storage(cache_dir=str(tmp_path / "file"))
    assert storage.read(remote, 0, 9) == DATA[:9]
    with pytest.raises(NoRoom, match=r"data\.bin .* cannot be kept in .*file: Not a directory; make room"):
        storage.local(remote)


def test_a_file_as_an_object(storage, remote):
    file = storage.open(remote)
    assert file.readable() and file.seekable()
    assert file.read(5) == DATA[:5] and file.tell() == 5
    file.seek(-4, 2)
    assert file.read() == DATA[-4:] and file.read() == b""
    file.seek(2)
    file.seek(3, 1)
    assert file.read(10**9) == DATA[5:]


@pytest.mark.parametrize("options", [{"tries": 0}, {"timeout_s": 0}, {"cache_gb": -1}])
def test_options_out_of_range(options):
    with pytest.raises(UserError, match="wanted are tries >= 1"):
        Storage(**options)


def test_within():
    assert within(10, lambda: 3) == 3
    with pytest.raises(KeyError):
        within(10, lambda: {}["x"])


class Server(http.server.BaseHTTPRequestHandler):
    """Files by ranges, as a web server gives them; some answers can be made to fail."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    failures: Counter = Counter()  # path -> how many of the next answers are 503  # noqa: RUF012
    asked: list = []  # noqa: RUF012

    def do_GET(self, body: bool = True):
        path = self.path.partition("?")[0]
        data = self.files.get(path)
        self.asked.append((self.command, path, self.headers.get("Range")))
        if self.failures[path] > 0 and self.command == "GET":
            self.failures[path] -= 1
            return self.send_error(503)
        if data is None:
            return self.send_error(404)
        first, last = 0, len(data) - 1
        if wanted := self.headers.get("Range"):
            first, last = (int(end) for end in wanted.removeprefix("bytes=").split("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hash(data)}"')
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        if body:
            self.wfile.write(data[first : last + 1])

    def do_HEAD(self):
        self.do_GET(body=False)

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    pytest.importorskip("aiohttp", reason="https:// needs .[remote]")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Server.files, Server.failures, Server.asked = {"/d/data.bin": DATA}, Counter(), []
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_files_of_a_web_server(web, storage):
    (file,) = find_files(f"{web}/d/data.bin?key=abc", (".bin",), storage)
    assert file.size == len(DATA) and file.version
    assert storage.read(file, 100, 200) == DATA[100:200]
    assert ("GET", "/d/data.bin", "bytes=100-199") in Server.asked
    before = len(Server.asked)
    assert storage.read(file, 100, 200) == DATA[100:200] and len(Server.asked) == before
    Server.failures["/d/data.bin"] = 2
    assert storage.read(file, 300, 400) == DATA[300:400]
    with pytest.raises(UserError, match="there is no file at"):
        find_files(f"{web}/d/other.bin", (".bin",), storage)


def test_parquet_of_a_web_server(web, storage, tmp_path):
    import pyarrow as pa

    pq.write_table(
        pa.table({"image": [b"a", b"b"], "caption": ["one", "two"]}), tmp_path / "x.parquet", write_page_checksum=True
    )
    Server.files["/d/x.parquet"] = (tmp_path / "x.parquet").read_bytes()
    source = Parquet(f"{web}/d/x.parquet", text_column="caption", storage=storage)
    assert source[1] == {"image": b"b", "text": "two", "key": "x.parquet:1"}
    again = Parquet(str(tmp_path / "x.parquet"), text_column="caption")
    assert source.fingerprint == again.fingerprint
    for signature in ("x=ab/c.d", "x=ef&y=2"):  # renewed, it makes no other data and no other order
        signed = Parquet(f"{web}/d/x.parquet?{signature}", text_column="caption", storage=storage)
        assert (signed.name, signed.fingerprint) == (again.name, again.fingerprint) and len(signed) == 2


@pytest.mark.parametrize(
    "path, name",
    [
        ("https://host/d/a.tar?sig=a/b", "a.tar"),
        ("http://host/d/?sig=a", "d"),
        ("gs://bucket/a?.tar", "a?.tar"),
        ("d/a?.tar", "a?.tar"),
    ],
)
def test_a_name_has_no_signature(path, name):
    assert File(path, 1).name == name


def test_a_url_without_a_length():
    with pytest.raises(UserError, match="does not say how many bytes"):
        module.remote_file("https://x/y", {"size": None})


def test_version_tells_contents_apart():
    made = {"name": "x", "size": 3, "created": time.time()}
    assert module.remote_file("memory://x", made) == File("memory://x", 3, str(made["created"]))
    assert module.remote_file("gs://x", {**made, "generation": "7"}).version == "7"
