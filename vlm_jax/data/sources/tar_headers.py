"""The members of a tar: where each begins and how long it is, without reading what lies between the headers.

POSIX.1-1988 (ustar), GNU (long names, sizes above 8 GiB) and POSIX.1-2001 (PAX) archives, as IEEE Std 1003.1 and the
GNU tar manual describe them. `tarfile` reads them too, at a fifth of the speed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from vlm_jax.data.storage import File, Storage

BLOCK = 512
ZEROS = bytes(BLOCK)
RECORD = 20 * BLOCK  # what follows the end mark fills this up
LOCAL_PIECE = 8 * BLOCK  # often reaches from one small member's header to the next
REMOTE_PIECE = 8 * 2**20
LONGEST_NAME = 2**20  # a "name" longer than this is damage

REGULAR = (b"0", b"\0", b"7")
WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
OTHERS_NAME = (b"K", b"g")  # the name that a link leads to; defaults for all members

Read = Callable[[int, int], bytes]


class DamagedTar(Exception):
    """What is wrong with a tar from some byte on; what came before is good."""


def open_tar(file: File, storage: Storage) -> tuple[Read, Callable[[], None]]:
    """Two functions: `read(at, size)`, whose result is short at the end of the file, and `close()`."""
    if file.remote:
        fetch = lambda start, stop: storage.read(file, start, stop, keep=False)
        return _pieces(fetch, file.size, REMOTE_PIECE), lambda: None
    fd = os.open(file.path, os.O_RDONLY)
    fetch = lambda start, stop: storage.attempt(file.path, lambda: os.pread(fd, stop - start, start))
    return _pieces(fetch, file.size, LOCAL_PIECE), lambda: os.close(fd)


def _pieces(fetch: Callable[[int, int], bytes], length: int, piece: int) -> Read:
    """Reads `piece` bytes where fewer are asked for, and keeps the last of them."""
    first, held = 0, b""

    def read(at: int, size: int) -> bytes:
        nonlocal first, held
        if not first <= at <= at + size <= first + len(held):
            first, held = at, fetch(at, min(max(at + size, at + piece), length)) if at < length else b""
        return held[at - first : at - first + size]

    return read


def members(read: Read, length: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and size of every regular file, in the archive's order.

    Args:
      read: `read(at, size) -> bytes`.
      length: of the archive, in bytes.

    Raises: DamagedTar, after the members that are whole.
    """
    at, name, pax = 0, None, {}
    while True:
        header = read(at, BLOCK)
        if header == ZEROS:
            if read(at, RECORD).strip(b"\0"):
                raise DamagedTar(f"more follows the end mark at byte {at}: archives joined together are not read")
            return
        if len(header) < BLOCK:
            cut = "in the middle of a header" if header else "without an end mark"
            raise DamagedTar(f"it ends {cut}, at byte {length}: it is cut off" if length else "it is empty")
        data, size, kind = at + BLOCK, _number(header, at), header[156:157]
        size = _pax_size(pax, size, at)
        if kind in WITHOUT_DATA:
            at, name, pax = data, None, {}
            continue
        at = data + -(-size // BLOCK) * BLOCK
        if kind in (b"L", b"x") and size <= LONGEST_NAME:
            if len(content := read(data, size)) < size:
                raise DamagedTar(f"it ends in the middle of a header, at byte {length}: it is cut off")
            name, pax = (content.split(b"\0", 1)[0], pax) if kind == b"L" else (name, _pax(content, data))
            continue
        if kind in OTHERS_NAME:
            continue
        member = pax.get(b"path") or name or _name(header)
        if kind not in REGULAR or any(key.startswith(b"GNU.sparse") for key in pax):
            raise DamagedTar(f"member {shown(member)} has type {kind!r} (sparse or split), which is not read")
        if data + size > length:
            raise DamagedTar(f"member {shown(member)} needs {size} bytes and {length - data} are there: it is cut off")
        if not (kind == b"\0" and member.endswith(b"/")):  # as folders were written before 1988
            yield member, data, size
        name, pax = None, {}


def shown(name: bytes) -> str:
    """A name in a message."""
    return name.decode("utf-8", "backslashreplace")


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345:346] != b"\0":
        return header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name


def _number(header: bytes, at: int) -> int:
    """The size in a header whose checksum is right."""
    try:
        written = int(header[148:156].strip(b" \0"), 8)
    except ValueError:
        written = -1
    if sum(header.translate(None, b"\0")) - sum(header[148:156]) + 8 * ord(" ") != written:  # most bytes are zeros
        what = f"it is no tar file: it begins with {header[:16]!r}" if at == 0 else f"no header at byte {at}"
        raise DamagedTar(what + _compressed(header) if at == 0 else f"{what}: bytes were changed or lost before it")
    field = header[124:136]
    try:
        if field[0] & 0x80:  # GNU: base 256
            return int.from_bytes(field[1:], "big") + ((field[0] & 0x7F) << 88)
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise DamagedTar(f"the header at byte {at} gives the size as {field!r}") from None


def _compressed(header: bytes) -> str:
    for magic, name in ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz")):
        if header.startswith(magic):
            return f", compressed by {name}, and cannot be read at random: decompress it"
    return ""


def _pax(content: bytes, at: int) -> dict[bytes, bytes]:
    """Records "LENGTH KEY=VALUE\\n"."""
    found, start = {}, 0
    while start < len(content) and content[start] != 0:
        space = content.find(b" ", start)
        digits = content[start:space] if space > 0 else b""
        stop = start + int(digits) if _is_number(digits) else 0
        key, equals, value = content[space + 1 : stop - 1].partition(b"=")
        if stop <= space or stop > len(content) or not equals:
            raise DamagedTar(f"the PAX header at byte {at} is broken")
        found[key] = value
        start = stop
    return found


def _pax_size(pax: dict[bytes, bytes], size: int, at: int) -> int:
    if (given := pax.get(b"size")) is None:
        return size
    if not _is_number(given):
        raise DamagedTar(f"the PAX header before byte {at} gives the size as {given!r}")
    return int(given)


def _is_number(digits: bytes) -> bool:
    return digits.isdigit() and len(digits) < 20
