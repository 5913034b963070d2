"""The lines between processes, with a thread for each process: rolls called, values gathered, stops agreed, ends."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.multi.jobs import free_port
from vlm_jax.errors import UserError
from vlm_jax.processes import Alone, Link
from vlm_jax.processes import hub as hubs
from vlm_jax.processes import link as links


class Ended(Exception):
    """Instead of the end of the process."""


class Threads:
    """Links of several processes; what would end a process is noted instead."""

    def __init__(self, count: int, monkeypatch):
        monkeypatch.setattr(links, "ECHO", 0.1)
        monkeypatch.setattr(links, "LAST", 0.5)
        monkeypatch.setattr(hubs, "LAST", 0.3)
        self.count, self.ends, self.pool = count, {}, ThreadPoolExecutor(count)
        self.port = free_port()

    def join(self, index: int, *, count: int | None = None, same=("seed = 0",), timeout: float = 20) -> Link:
        address, count = f"127.0.0.1:{self.port}", self.count if count is None else count
        hub = hubs.Hub(address, count, same, timeout) if index == 0 else None
        return Link(address, index, count, same, timeout, hub)

    def all(self, function):
        """`function(index)` of every process at once: its results, or what it raised."""

        def one(index):
            try:
                return function(index)
            except (UserError, Ended) as error:
                return error

        return list(self.pool.map(one, range(self.count)))


@pytest.fixture
def threads(monkeypatch):
    made = []

    def make(count: int) -> Threads:
        made.append(Threads(count, monkeypatch))

        def end(self, line, code, tell):
            made[-1].ends.setdefault(self.index, (line, code, tell))
            self._socket.shutdown(socket.SHUT_RDWR)  # as its end would
            raise Ended

        monkeypatch.setattr(links.Link, "_end", end)
        return made[-1]

    monkeypatch.setattr(threading, "excepthook", lambda args: None)  # Ended, in listening threads
    yield make
    for one in made:
        one.pool.shutdown(cancel_futures=True)


def wait_until(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_values_come_in_the_order_of_processes(threads):
    some = threads(3)
    some.links = some.all(some.join)
    assert (
        some.all(lambda i: [some.links[i].gather([i, k]) for k in range(3)])
        == [[[[0, k], [1, k], [2, k]] for k in range(3)]] * 3
    )


def test_the_first_makes_before_the_others(threads):
    some, order = threads(3), []
    some.links = some.all(some.join)

    def make(index):
        time.sleep(0.1 * (index == 0))
        order.append(index)
        return index

    assert some.all(lambda i: some.links[i].in_turn(lambda: make(i))) == [0, 1, 2]
    assert order[0] == 0


@pytest.mark.parametrize("lag", [0.0, 0.02])
def test_all_stop_at_the_same_step(threads, lag):
    """Their loops keep within a step of one another, as collectives keep them; `lag` slows one down."""
    some = threads(3)
    some.links = some.all(some.join)
    barrier = threading.Barrier(3)

    def loop(index):
        for step in range(1000):
            signal = some.links[index].stops(15 if index == 1 and step >= 5 else None)
            if signal is not None:
                barrier.abort()
                return step, signal, some.links[index].stops(None)
            try:
                barrier.wait()
            except threading.BrokenBarrierError:
                pass
            time.sleep(lag * (index == 2))
        return None

    stopped = some.all(loop)
    assert len(set(stopped)) == 1 and stopped[0][1:] == (15, 15) and stopped[0][0] > 5


def test_an_error_of_one_ends_all_with_its_line_told_once(threads):
    some = threads(3)
    some.links = some.all(some.join)

    def work(index):
        with some.links[index].together():
            if index == 1:
                raise UserError("no such file.")
            some.links[index].gather(None)

    some.pool.submit(work, 1)
    wait_until(lambda: len(some.ends) == 3)
    assert {end[:2] for end in some.ends.values()} == {("process 1: no such file.", 2)}
    assert [index for index, end in some.ends.items() if end[2]] == [0]


def test_an_error_of_all_is_no_ones(threads):
    some = threads(3)
    some.links = some.all(some.join)

    def work(index):
        with some.links[index].together():
            raise UserError("no such file.")

    some.all(work)
    wait_until(lambda: len(some.ends) == 3)
    assert {end[:2] for end in some.ends.values()} == {("no such file.", 2)}


def test_a_process_that_is_gone_ends_the_others(threads):
    some = threads(3)
    some.links = some.all(some.join)
    some.links[2]._done = True  # so that its own end is not told
    some.links[2]._socket.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: {0, 1} <= set(some.ends))
    assert some.ends[0][0].startswith("process 2 is gone") and some.ends[0][1] == 1
    assert not some.ends[1][2]


@pytest.mark.parametrize("said", [b'{"gather": [1, ', b'"' + b"x" * 2**17 + b'"\n'], ids=["half", "too_long"])
def test_a_process_that_is_killed_in_the_middle_of_a_line_ends_the_others(threads, monkeypatch, said):
    monkeypatch.setattr(hubs, "LONGEST", 2**16)
    some = threads(3)
    some.links = some.all(some.join)
    some.links[2]._done = True
    some.links[2]._socket.sendall(said)
    some.links[2]._socket.shutdown(socket.SHUT_WR)
    wait_until(lambda: {0, 1} <= set(some.ends))
    assert some.ends[0][0].startswith("process 2 is gone") and some.ends[0][1] == 1


def test_a_first_process_that_is_killed_in_the_middle_of_a_line_ends_the_others(threads):
    some = threads(2)
    some.links = some.all(some.join)
    writer = some.links[0]._hub._writers[1]
    writer.write(b'{"gathered": [1, ')
    writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
    wait_until(lambda: 1 in some.ends)
    assert some.ends[1][0].startswith("process 0 is gone") and some.ends[1][1] == 1


def test_an_error_is_told_without_its_secrets(threads, capsys):
    some = threads(1)
    (link,) = some.all(some.join)
    with pytest.raises(Ended), link.together():
        raise OSError("no https://me:{}@host/a.tar?sig={}".format("pass", "hush"))
    wait_until(lambda: some.ends)
    told = "OSError: no https://***@host/a.tar?sig=***"
    trace = capsys.readouterr().err
    assert some.ends[0][0] == told and told in trace and "me:pass@" not in trace and "=hush" not in trace


def test_an_end_in_order_ends_nobody(threads):
    some = threads(2)
    some.links = some.all(some.join)

    def work(index):
        with some.links[index].together():
            some.links[index].gather(None)
        time.sleep(0.2)
        return index

    assert some.all(work) == [0, 1] and not some.ends


def test_the_port_is_free_again_when_all_are_there(threads):
    some = threads(2)
    some.links = some.all(some.join)
    with socket.socket(socket.AF_INET6) as again:  # as jax's service binds it
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("::", some.port))
        again.listen()
    assert some.all(lambda i: some.links[i].gather(i)) == [[0, 1]] * 2


def refused(some, **of_the_second) -> list[str]:
    """What two processes are told, the second of which is started in another way."""
    return [str(told) for told in some.all(lambda i: some.join(i, **(of_the_second if i else {})))]


def test_another_count(threads):
    line = "process 1 was started with --num_processes=3, process 0 with 2."
    assert refused(threads(2), count=3) == [line, line]


def test_another_config(threads):
    line = "process 1 was started with other arguments than process 0: seed = 1 instead of seed = 0."
    assert refused(threads(2), same=["seed = 1"]) == [line, line]


def test_one_twice(threads):
    some = threads(3)
    told = some.all(lambda i: some.join(min(i, 1)))
    assert [str(one) for one in told] == ["there are two processes with --process_id=1."] * 3


def test_one_that_does_not_come(threads):
    with pytest.raises(UserError, match=r"process 1 of 2 did not come within 1 s\."):
        threads(2).join(0, timeout=1)


def test_a_first_one_that_does_not_come(threads):
    with pytest.raises(UserError, match=r"nothing answers at --coordinator=\S+ after 1 s \(Connection refused"):
        threads(2).join(1, timeout=1)


def test_a_port_that_is_taken_and_a_stranger_on_it(threads):
    some = threads(2)
    with socket.create_server(("127.0.0.1", some.port)) as taken:
        with pytest.raises(UserError, match=rf"port {some.port} of .*: address already in use; give a free one"):
            some.join(0)
        some.pool.submit(lambda: taken.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\n"))
        with pytest.raises(UserError, match="is not process 0 of this job"):
            some.join(1)


def test_a_stranger_is_turned_away(threads):
    some = threads(2)
    first = some.pool.submit(some.join, 0)
    wait_until(lambda: not socket.socket().connect_ex(("127.0.0.1", some.port)))
    with socket.create_connection(("127.0.0.1", some.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\n")
        assert stranger.recv(100) == b""
    second = some.join(1)
    assert some.all(lambda i: (first.result(), second)[i].gather(i)) == [[0, 1]] * 2


def test_alone(capsys):
    alone = Alone()
    assert alone.gather(3) == [3] and alone.in_turn(lambda: 4) == 4
    assert alone.stops(None) is None and alone.stops(2) == 2
    with pytest.raises(ValueError), alone.together():
        raise ValueError
    alone.say("hello")
    assert capsys.readouterr().out == "hello\n"
