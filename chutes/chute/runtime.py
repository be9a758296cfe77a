"""Running an author's code beside a server that must go on answering.

All of it, sync or async, runs in a thread pool of its own, so that a cord that computes for a minute
delays neither health checks nor other requests. Async code gets a fresh event loop for each call: what
was bound to another loop in a startup hook (an aiohttp session, say) does not belong in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

TIME_LIMIT_S = 1800.0
"""Published limit on one call; streams included."""
_QUEUE_ITEMS = 64  # published depth: an author's generator runs this far ahead of a slow client

_END = object()


class TimeLimitError(Exception):
    """A call ran past the limit."""


class UserCode:
    """The thread pool of one chute.

    Args:
        concurrency: requests the chute takes at once; the pool has one thread more, at least 4.
        limit_s: seconds one call may take.
    """

    def __init__(self, concurrency: int, limit_s: float = TIME_LIMIT_S) -> None:
        self.limit_s = limit_s
        self._pool = ThreadPoolExecutor(max(4, concurrency + 1), thread_name_prefix="cord")

    def close(self) -> None:
        """Take no more calls. A call that is still running is left to end by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def call(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run `func` and return its result.

        Cancelling this cancels async code where it awaits; sync code cannot be stopped and its result is
        dropped.

        Raises:
            TimeLimitError: it took more than `limit_s`.
        """
        running = _Running()
        future = self._submit(_run, running, func, args, kwargs)
        deadline = asyncio.timeout(self.limit_s)
        try:
            async with deadline:
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if deadline.expired():
                raise TimeLimitError(f"the call took more than {self.limit_s:g} seconds") from None
            raise  # the author's own TimeoutError
        finally:
            running.cancel()

    async def stream(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Run a generator function, sync or async, and yield its items in order.

        Closing this iterator stops the generator at its next `yield` (async code: where it awaits).

        Raises:
            TimeLimitError: the whole stream took more than `limit_s`.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Any] = asyncio.Queue(_QUEUE_ITEMS)
        running = _Running()

        def put(item: Any) -> Future[None]:
            return asyncio.run_coroutine_threadsafe(queue.put(item), loop)

        def produce() -> None:
            error: BaseException | None = None
            try:
                _run_generator(running, func, args, kwargs, put)
            except BaseException as e:
                error = e
            if not running.cancelled:
                with contextlib.suppress(_StoppedError):
                    running.wait_for(put((_END, error)))

        self._submit(produce)
        deadline = loop.time() + self.limit_s
        try:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        item = await queue.get()
                except TimeoutError:
                    raise TimeLimitError(f"the stream took more than {self.limit_s:g} seconds") from None
                if isinstance(item, tuple) and len(item) == 2 and item[0] is _END:
                    if item[1] is not None:
                        raise item[1]
                    return
                yield item
        finally:
            running.cancel()

    def _submit(self, func: Callable[..., Any], *args: Any) -> Future[Any]:
        # Context variables (tracing, request ids) follow the request into its thread.
        return self._pool.submit(contextvars.copy_context().run, func, *args)


class _StoppedError(Exception):
    """The client of a stream has gone; unwinds the producing thread."""


class _Running:
    """Lets the server's loop cancel what runs in a thread, whichever stage it has reached."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._task: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: Future[Any] | None = None
        self.cancelled = False

    def attach(self) -> None:
        """Called inside the thread's own loop, by the task to be cancelled."""
        with self._lock:
            if self.cancelled:
                raise asyncio.CancelledError
            self._task, self._loop = asyncio.current_task(), asyncio.get_running_loop()

    def detach(self) -> None:
        with self._lock:
            self._task = self._loop = None

    def wait_for(self, future: Future[None]) -> None:
        """Block the thread until the queue has room.

        Raises:
            _StoppedError: nobody reads any more.
        """
        with self._lock:
            if self.cancelled:
                future.cancel()
                raise _StoppedError
            self._waiting = future
        try:
            future.result()
        except BaseException:
            raise _StoppedError from None
        finally:
            self._waiting = None

    def cancel(self) -> None:
        with self._lock:
            self.cancelled = True
            if self._waiting is not None:
                self._waiting.cancel()
            if self._loop is not None and self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)


def _run(running: _Running, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if inspect.iscoroutinefunction(func):
        return _in_loop(running, lambda: func(*args, **kwargs))
    result = func(*args, **kwargs)
    return _in_loop(running, lambda: result) if inspect.isawaitable(result) else result


def _in_loop(running: _Running, start: Callable[[], Any]) -> Any:
    async def main() -> Any:
        running.attach()
        try:
            return await start()
        finally:
            running.detach()

    with asyncio.Runner() as runner:
        return runner.run(main())


def _run_generator(
    running: _Running,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    put: Callable[[Any], Future[None]],
) -> None:
    made = func(*args, **kwargs)

    async def consume() -> None:
        items = await made if inspect.isawaitable(made) else made  # `async def` that returns a generator
        if not hasattr(items, "__aiter__"):
            for item in items:
                await asyncio.wrap_future(put(item))
            return
        try:
            async for item in items:
                await asyncio.wrap_future(put(item))
        finally:
            if hasattr(items, "aclose"):
                await items.aclose()

    if inspect.isawaitable(made) or hasattr(made, "__aiter__"):
        with contextlib.suppress(asyncio.CancelledError):  # the client has gone
            _in_loop(running, consume)
        return
    try:
        for item in made:
            running.wait_for(put(item))
    except _StoppedError:
        pass
    finally:
        if hasattr(made, "close"):
            made.close()
