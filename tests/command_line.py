"""The command line in this process: what a process of its own does, without the seconds in which it imports PyTorch."""

from __future__ import annotations

import io
import logging
import os
import random
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from subprocess import CompletedProcess
from unittest import mock

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from regard import cli
from regard.cli import progress

HIDDEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
"""Warnings that Python does not print of code outside of the main module."""


def regard(*arguments: str, text: str = "") -> CompletedProcess[str]:
    """Runs ``regard`` with the arguments, and ``text`` on standard input, as a process without a terminal does.

    What is printed is caught at the file descriptors too, as is what loggers and warnings say. Nothing of how far it
    has come is printed, however slow the machine is. An error that leaves `main` is printed, and is exit status 1.
    Directory, environment, threads, random numbers, verbosity and warnings are afterwards as they were before.
    """
    with ExitStack() as stack:
        out, err = (stack.enter_context(caught(descriptor)) for descriptor in (1, 2))
        given = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")
        for change in (
            mock.patch.object(sys, "argv", ["regard", *arguments]),
            mock.patch.object(sys, "stdin", given),
            mock.patch.object(progress, "QUIET", float("inf")),
            redirect_stdout(out),
            redirect_stderr(err),
            loggers_to(err),
            warnings_as_printed(),
            settings_kept(),
        ):
            stack.enter_context(change)
        status = exit_status()
        printed = [whole(file) for file in (out, err)]
    return CompletedProcess(["regard", *arguments], status, *printed)


def exit_status() -> int:
    """Runs the entry point; gives what the system would be told."""
    try:
        cli.main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def whole(file: io.TextIOBase) -> str:
    """All that was written to a file."""
    file.flush()
    file.seek(0)
    return file.read()


@contextmanager
def caught(descriptor: int) -> Iterator[io.TextIOBase]:
    """A file in the place of a standard stream's descriptor."""
    kept = os.dup(descriptor)
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as file:
        os.dup2(file.fileno(), descriptor)
        try:
            yield file
        finally:
            os.dup2(kept, descriptor)
            os.close(kept)


@contextmanager
def loggers_to(file: io.TextIOBase) -> Iterator[None]:
    """What loggers print on the standard error of the time when they were made goes into the file."""
    loggers = [logging.root, *(one for one in logging.root.manager.loggerDict.values() if hasattr(one, "handlers"))]
    plain = {one for each in loggers for one in each.handlers if type(one) is logging.StreamHandler}
    streams = {handler: handler.stream for handler in plain}
    levels = {logger: logger.level for logger in loggers}
    for handler in plain:
        handler.stream = file
    try:
        yield
    finally:
        for handler, stream in streams.items():
            handler.stream = stream
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def warnings_as_printed() -> Iterator[None]:
    """Warnings are printed on standard error, once each, as Python does where nobody collects them."""

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=file or sys.stderr)

    with warnings.catch_warnings():
        warnings.resetwarnings()
        for category in HIDDEN:
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield


@contextmanager
def settings_kept() -> Iterator[None]:
    """Directory, environment, and what PyTorch, NumPy and Transformers keep for the whole process."""
    place, environment, threads = os.getcwd(), dict(os.environ), torch.get_num_threads()
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    bars = transformers_logging.is_progress_bar_enabled()
    try:
        yield
    finally:
        os.chdir(place)
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(threads)
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        (transformers_logging.enable_progress_bar if bars else transformers_logging.disable_progress_bar)()
