"""Two processes that are forked from the test, and that never outlive it."""

import multiprocessing
import os
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def in_two_processes(function: Callable[..., Any], *args: Any, seconds: float = 100) -> list[Any]:
    """Call a function in two processes that Lightning takes for a launcher's; return what each one returned.

    Raises:
        RuntimeError: With the traceback of the first process that failed.
        TimeoutError: If they are not done in time. They and their children are gone in any case.
    """
    context = multiprocessing.get_context("fork")
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        processes = [context.Process(target=child, args=(function, args, rank, port, folder)) for rank in range(2)]
        try:
            for process in processes:
                process.start()
            wait(processes, time.monotonic() + seconds, folder)
        finally:
            for process in processes:
                end(process)
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(2)]


def wait(processes: list[Any], deadline: float, folder: str) -> None:
    """Wait until both are done, one failed, or the time is over."""
    while any(process.exitcode is None for process in processes):
        if any(Path(folder).glob("*.txt")):
            time.sleep(1)  # the one that failed because the other is gone may be faster to say so
            raise RuntimeError("\n".join(path.read_text() for path in Path(folder).glob("*.txt")))
        if time.monotonic() > deadline:
            raise TimeoutError("two processes were not done in time")
        time.sleep(0.05)
    errors = list(Path(folder).glob("*.txt"))
    if errors or any(process.exitcode for process in processes):
        raise RuntimeError(errors[0].read_text() if errors else "a process died")


def end(process: Any) -> None:
    """Kill a process with all that it started."""
    if process.pid is not None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
        process.join()


def child(function: Callable[..., Any], args: tuple[Any, ...], rank: int, port: int, folder: str) -> None:
    """Run in one process."""
    os.setsid()
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"NODE_RANK": "0", "GROUP_RANK": "0", "WORLD_SIZE": "2", "RANK": str(rank)}
    torch.manual_seed(0)
    try:
        torch.save(function(*args), Path(folder, f"{rank}.pt"))
        while not Path(folder, f"{1 - rank}.pt").exists():  # it may still read what this one sent last
            time.sleep(0.02)
    except BaseException:
        text = Path(folder, f"{rank}.part")
        text.write_text(traceback.format_exc())
        text.rename(text.with_suffix(".txt"))
        raise
