"""What is done with every request that has ended, in one thread beside the platform's loop.

The loop hands over what workers send, unread: decoding, adding up, writing rows and lines happens here.
At twenty thousand requests a second that is a fifth of a core, which the loop must not be kept waiting
for.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from chutes.control import keys
from chutes.control.access_log import AccessLog
from chutes.control.counts import Counts
from chutes.control.usage import UsageStore
from chutes.wire import Price, Record, Usage

log = logging.getLogger(__name__)

# Between two transactions. Workers hold records back for a quarter of a second at most, so that with this
# and the time to write, less than a second's are lost if this process is killed.
BATCH_SECONDS = 0.1
PRUNE_SECONDS = 1.0
COMPLAIN_SECONDS = 60.0
# While the disk is too slow or full. A message holds up to a quarter of a second's records of one worker.
MAX_WAITING_BYTES = 128 << 20
MAX_UNWRITTEN = 200_000
# Decoding holds the interpreter, and the loop waits for it: messages that were put together are not
# decoded together.
SLICE = 500
END_SECONDS = 10.0

_decoder = msgspec.json.Decoder(Usage)
USAGE_PREFIX = b'{"type":"usage"'
"""How a message begins that is handed over unread."""


class Meter:
    """Usage rows, access log, sums for Prometheus and spans, from what workers send.

    Args:
        access_log: None: no such log is kept.
        export: is handed every batch, for tracing; must not block.
    """

    def __init__(
        self,
        store: UsageStore,
        access_log: AccessLog | None = None,
        export: Callable[[Sequence[Record]], None] | None = None,
    ) -> None:
        self.counts = Counts()
        self.lock = threading.Lock()
        """Held while `counts` is read or written."""
        self.lost = 0
        """Requests that were not written because rows came faster than the disk took them."""
        self.chutes: dict[str, str] = {}
        """What chutes are called, by id; of all since the platform started."""
        self.prices: dict[str, Price] = {}
        """By chute id; replaced, never changed."""
        self._store = store
        self._access_log = access_log
        self._export = export
        self._waiting: deque[bytes | Usage] = deque()
        self._waiting_bytes = 0
        self._known: dict[tuple[str, str], str] = {}
        """Names by kind and id."""
        self._news: dict[tuple[str, str], str] = {}
        """Those that are not in the store yet."""
        self._unwritten: list[Record] = []
        self._something = threading.Event()
        self._ending = threading.Event()
        self._pruned = 0.0
        self._complained: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="metering", daemon=True)
        self._thread.start()

    # On the loop ---------------------------------------------------------------------------------

    def take(self, message: bytes | Usage) -> None:
        """Hand over what a worker sent: the line as it came, or the message."""
        size = len(message) if isinstance(message, bytes) else 300 * len(message.records)
        if self._waiting_bytes + size > MAX_WAITING_BYTES:
            self._lose(_read(message).records, "they come faster than they can be written")
            return
        self._waiting_bytes += size
        self._waiting.append(message)
        self._something.set()

    def woke(self, chute_id: str) -> None:
        with self.lock:
            self.counts.woke(chute_id)

    def know(self, chutes: dict[str, str], keys: dict[str, str], prices: dict[str, Price]) -> None:
        """What chutes and keys are called, and what chutes cost, from now on; all by id."""
        self.prices = prices
        self.chutes = {**self.chutes, **chutes}
        names = {("chute", id_): name for id_, name in chutes.items()}
        names |= {("key", id_): name for id_, name in keys.items()}
        news = {of: name for of, name in names.items() if self._known.get(of) != name}
        self._known |= news
        if news:
            with self.lock:
                self._news |= news
            self._something.set()

    def close(self) -> None:
        """Write what is there and end; blocks until then."""
        self._ending.set()
        self._something.set()
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            log.error("the last requests were not written within %.0f s", END_SECONDS)

    # In the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._something.wait(PRUNE_SECONDS)
            self._ending.wait(BATCH_SECONDS)  # for more to come, unless it is the end
            self._something.clear()
            ending = self._ending.is_set()
            try:
                self._turn()
            except Exception:
                # A fault of ours in one batch must not end the metering of all that follow.
                log.exception("some requests were not metered")
            if ending and not self._waiting:
                break
        self._store.close()
        if self._access_log is not None:
            self._access_log.close()

    def _turn(self) -> None:
        while self._waiting:
            message = self._waiting.popleft()
            self._waiting_bytes -= len(message) if isinstance(message, bytes) else 300 * len(message.records)
            try:
                usage = _read(message)
            except msgspec.MsgspecError as error:
                self._complain("read", f"a worker's message about usage cannot be read: {error}")
                continue
            records = [record if "cpk_" not in record.model + record.path else _without_keys(record)
                       for record in usage.records]  # fmt: skip
            if usage.refused:
                with self.lock:
                    self.counts.refused(usage.refused)
            for begin in range(0, max(len(records), 1), SLICE):
                self._digest(records[begin : begin + SLICE], usage.gaps if begin == 0 else [])
        self._write()
        if time.monotonic() - self._pruned >= PRUNE_SECONDS:
            self._pruned = time.monotonic()
            self._store.prune(time.time())

    def _digest(self, records: list[Record], gaps: list[int]) -> None:
        with self.lock:
            self.counts.take(records, gaps)
        self._unwritten += records
        if self._access_log is not None and records:
            try:
                self._access_log.write(records, self.chutes)
            except OSError as error:
                self._complain("log", f"the access log cannot be written: {error}")
        if self._export is not None and records:
            self._export(records)

    def _write(self) -> None:
        """Put into the store what is not there yet; what cannot be now is tried again with the next batch."""
        try:
            with self.lock:
                news, self._news = self._news, {}
            if news:
                try:
                    self._store.know(news)
                except sqlite3.OperationalError:
                    with self.lock:
                        self._news = {**news, **self._news}
                    raise
            if self._unwritten:
                self._add()
                self._unwritten = []
        except sqlite3.OperationalError as error:
            self._complain("write", f"usage cannot be written to {self._store.path}: {error}")
            if len(self._unwritten) > MAX_UNWRITTEN:
                self._lose(self._unwritten[:-MAX_UNWRITTEN], "the store cannot be written to")
                self._unwritten = self._unwritten[-MAX_UNWRITTEN:]

    def _add(self) -> None:
        try:
            self._store.add(self._unwritten, self.prices)
        except sqlite3.OperationalError:  # the disk; another time
            raise
        except Exception:
            # One of them cannot be kept, an engine that counts beyond 63 bits say: not all for its sake.
            for number, record in enumerate(self._unwritten):
                try:
                    self._store.add([record], self.prices)
                except sqlite3.OperationalError:
                    self._unwritten = self._unwritten[number:]
                    raise
                except Exception as error:
                    self._lose([record], f"one cannot be kept: {error}")

    def _lose(self, records: Sequence[Record], why: str) -> None:
        self.lost += len(records)
        self._complain("lost", f"{self.lost} requests so far will be missing from usage: {why}")

    def _complain(self, kind: str, text: str) -> None:
        """Say it, but not hundreds of times a minute."""
        if time.monotonic() - self._complained.get(kind, -COMPLAIN_SECONDS) >= COMPLAIN_SECONDS:
            self._complained[kind] = time.monotonic()
            log.error("%s", text)


def _read(message: bytes | Usage) -> Usage:
    return _decoder.decode(message) if isinstance(message, bytes) else message


def _without_keys(record: Record) -> Record:
    """For a client that says its key where the model's name belongs."""
    model, path = (keys.BEGINNING.sub("cpk_…", text) for text in (record.model, record.path))
    return msgspec.structs.replace(record, model=model, path=path)
