"""Process 0's side of the lines between processes: who is there, what they say, and how they end.

A message is a line of JSON. A process introduces itself by `{"process", "count", "same"}`; once all have, each gets
`{"go"}`. Then it may send

    {"gather": VALUE}                a value for all; when every process has sent one, each gets the list
    {"stop": SIGNAL}                 somebody asked to stop; the hub asks {"where"}, gets {"at": CALLS} from everyone,
                                     who has asked as often whether to stop, and tells {"stop_at": CALLS, "signal"}
    {"failed": LINE, "code": CODE}   an error; all get {"end": LINE, "code": CODE}
    {"bye"}                          done: its line may end now

A line that ends before that is a process that was killed, and ends the others too.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import socket
import threading
from collections.abc import Sequence
from typing import Any

from vlm_jax.errors import UserError

# Seconds that processes have to end in before the first one does, whose end would kill them.
LAST = 5.0
# Bytes of a message at most.
LONGEST = 2**24
# Seconds within which others fail in the same way where the fault is not one process's own.
ALIKE = 0.5


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def gone(process: int) -> str:
    return f"process {process} is gone (killed?); start the job again, and it goes on from its last checkpoint."


class Hub:
    """Listens for `count` processes, and passes on between them; it runs in a thread of process 0.

    Args:
      coordinator: HOST:PORT; it listens on the port until all are there, and then leaves it to jax.
      count: processes, this one included.
      same: lines that every process must have the same.
      timeout: seconds to wait for all of them.

    Raises:
      UserError: the port is taken.
    """

    def __init__(self, coordinator: str, count: int, same: Sequence[str], timeout: float):
        self._count, self._same, self._timeout = count, list(same), timeout
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._done: set[int] = set()
        self._left: dict[int, asyncio.Event] = {}
        self._values = collections.defaultdict(collections.deque)
        self._at: dict[int, int] = {}
        self._stop: int | None = None
        self._failed: list[str] = []
        self._last: dict[str, Any] | None = None
        port = int(coordinator.rpartition(":")[2])
        try:
            if socket.has_dualstack_ipv6():
                self._socket = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            else:
                self._socket = socket.create_server(("", port))
        except OSError as error:
            why = os.strerror(error.errno)
            raise UserError(f"port {port} of --coordinator={coordinator}: {why.lower()}; give a free one.") from error
        threading.Thread(target=lambda: asyncio.run(self._run()), name="hub", daemon=True).start()

    async def _run(self) -> None:
        self._server = await asyncio.start_server(self._serve, sock=self._socket, backlog=4096, limit=LONGEST)
        await asyncio.sleep(self._timeout)
        missing = [str(i) for i in range(self._count) if i not in self._writers]
        if missing:
            shown = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
            which = f"process {shown}" if len(missing) == 1 else f"processes {shown}"
            await self._end(f"{which} of {self._count} did not come within {self._timeout:g} s.", 2)
        await asyncio.Event().wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            hello = json.loads(await reader.readline())
            process = int(hello["process"])
        except (ValueError, KeyError, TypeError, OSError):
            writer.close()  # somebody who is no process of ours
            return
        if self._last is None and (wrong := self._wrong(hello)):
            await self._end(wrong, 2)
        if self._last is not None:
            writer.write(encode(self._last))
            return
        self._writers[process], self._left[process] = writer, asyncio.Event()
        if len(self._writers) == self._count:
            self._server.close()  # jax listens on this port next
            self._tell_all({"go": True})
        try:
            while line := await reader.readline():
                await self._hear(process, json.loads(line))
        except (OSError, ValueError):  # gone, in the middle of a line where it was killed
            pass
        self._left[process].set()
        if process not in self._done:
            await self._end(gone(process), 1)

    def _wrong(self, hello: dict[str, Any]) -> str | None:
        """What keeps a process out."""
        process, count, same = hello["process"], hello["count"], hello["same"]
        if count != self._count:
            return f"process {process} was started with --num_processes={count}, process 0 with {self._count}."
        if process in self._writers:
            return f"there are two processes with --process_id={process}."
        if same != self._same:
            here, there = ([x for x in a if x not in b] for a, b in ((self._same, same), (same, self._same)))
            return (
                f"process {process} was started with other arguments than process 0: "
                f"{', '.join(there[:4]) or 'nothing'} instead of {', '.join(here[:4]) or 'nothing'}."
            )
        return None

    async def _hear(self, process: int, message: dict[str, Any]) -> None:
        if "gather" in message:
            self._values[process].append(message["gather"])
            if all(self._values[i] for i in range(self._count)):
                self._tell_all({"gathered": [self._values[i].popleft() for i in range(self._count)]})
        elif "stop" in message and self._stop is None:
            self._stop = message["stop"]
            self._tell_all({"where": True})
        elif "at" in message:
            self._at[process] = message["at"]
            if len(self._at) == self._count:
                # Whoever is furthest has begun a step after the last time it asked.
                self._tell_all({"stop_at": max(self._at.values()) + 1, "signal": self._stop})
        elif "failed" in message:
            line = message["failed"]
            self._failed.append(line)
            await asyncio.sleep(ALIKE)
            alone = process and self._failed.count(line) == 1
            await self._end(f"process {process}: {line}" if alone else line, message["code"])
        elif "bye" in message:
            self._done.add(process)

    def _tell_all(self, message: dict[str, Any]) -> None:
        for writer in self._writers.values():
            writer.write(encode(message))

    async def _end(self, line: str, code: int) -> None:
        """Ends all processes: this one last, for jax kills whoever it leaves behind."""
        if self._last is not None:
            return
        self._last = {"end": line, "code": code}
        others = [process for process in self._writers if process]
        for process in others:
            self._writers[process].write(encode(self._last))
        if others:
            await asyncio.wait([asyncio.ensure_future(self._left[i].wait()) for i in others], timeout=LAST)
        if 0 in self._writers:
            self._writers[0].write(encode(self._last))
