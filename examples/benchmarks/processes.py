"""Processes of their own that begin with everything imported, which takes longer than what they are started for."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["kdmcse_hf.trainer", "sentence_transformers"])


class Process:
    """Calls `function(connection, *arguments)` in a process; both ends speak through a pipe.

    Args:
        function: of a module, for it is found by name.
        arguments: pickled.
    """

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        self._connection, there = _context.Pipe()
        self._said = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115 (closed with the object)
        self._process = _context.Process(target=_begin, args=(function, there, self._said.name, arguments))
        self._name = f"{function.__name__}{arguments}"
        self._process.start()
        there.close()

    def receive(self) -> Any:
        """What the function sends next.

        Raises:
            RuntimeError: it ended instead; ends with what it said.
        """
        try:
            return self._connection.recv()
        except EOFError:
            raise RuntimeError(f"{self._name} failed:\n{self._said.read()[-2000:]}") from None

    def send(self, message: Any) -> None:
        self._connection.send(message)

    def end(self) -> None:
        self._connection.close()  # who waits for an answer fails, and ends
        self._process.join(10)
        self._process.kill()


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a process of its own."""
    process = Process(_send_result, function, arguments)
    try:
        return process.receive()
    finally:
        process.end()


def _send_result(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    connection.send(function(*arguments))


def _begin(function: Callable[..., None], connection: Connection, said: str, arguments: tuple[Any, ...]) -> None:
    file = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    function(connection, *arguments)
