"""`regard serve`: a record's page on this machine's loopback, with every region of every map recomputed exactly."""

from __future__ import annotations

import socket
import threading
import webbrowser
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from torch import Tensor

from regard.analysis.neuron_view import neurons
from regard.core.errors import wrong
from regard.records.format import Record
from regard.web.page import page_html

HOST = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost")  # Host headers that are answered: a foreign name that resolves here is not
MOST_CELLS = 512 * 512  # numbers in one answer
BAND = 1 << 22  # entries of A that are formed at a time


def app(folder: Path) -> FastAPI:
    """The server of the record in ``folder``: ``/`` is the page, ``/api/region`` any part of any map.

    Raises:
        FileNotFoundError: no record there. ValueError: a record of another format or version.
    """
    record = Record.load(folder)
    server = FastAPI(title="regard", docs_url=None, redoc_url=None, openapi_url=None)

    @cache
    def page() -> str:
        return page_html(folder, served=True)

    @server.middleware("http")
    async def only_this_machine(request: Request, call_next):
        if (request.url.hostname or "") not in NAMES:
            return Response(f"Host: got {request.url.hostname!r}, want one of {NAMES}", status_code=421)
        return await call_next(request)

    @server.get("/", response_class=HTMLResponse)
    def index() -> str:
        return page()

    @server.get("/api/region")
    def region(
        layer: int, head: int, row0: int, row1: int, key0: int, key1: int, step: int = 1, values: bool = False
    ) -> Response:
        """Little-endian float32, row by row: means over ``step`` × ``step`` pairs, NaN where none may be seen.

        They are of weights, or with ``values`` of ``‖A_ij v_j‖``.
        """
        try:
            found = means(record, layer, head, (row0, row1), (key0, key1), step, values)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return Response(found.numpy().astype("<f4").tobytes(), media_type="application/octet-stream")

    @server.get("/api/pair")
    def pair(layer: int, head: int, row: int, key: int) -> dict[str, Any]:
        """What the score of one pair is made of, its weight, q and k."""
        try:
            found = neurons(record, layer, head, row, key)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return asdict(found)

    return server


def means(
    record: Record,
    layer: int,
    head: int,
    rows: tuple[int, int],
    keys: tuple[int, int],
    step: int,
    values: bool = False,
) -> Tensor:
    """``(⌈rows / step⌉, ⌈keys / step⌉)`` float32: means over the pairs that may be seen, NaN where there are none.

    Args:
        values: means of ``‖A_ij v_j‖`` instead of A.

    Raises:
        ValueError: a region outside the map or too large; no such layer or head; a record that kept no tensors, or
            not how long the layer's values are.
    """
    for name, (first, last), size in zip(("row", "key"), (rows, keys), record.sizes(record.layer(layer)), strict=True):
        if not 0 <= first < last <= size:
            raise wrong(f"{name}0, {name}1", f"{first}, {last}", f"0 <= {name}0 < {name}1 <= {size}")
    if step < 1:
        raise wrong("step", str(step), "at least 1")
    height, width = (-(-(last - first) // step) for first, last in (rows, keys))
    if height * width > MOST_CELLS:
        raise wrong("region", f"{height} × {width} cells", f"at most {MOST_CELLS}; take a larger step")
    band = max(step, BAND // (keys[1] - keys[0]) // step * step)
    factors = record.value_norms(layer, head)[keys[0] : keys[1]] if values else None
    parts = [
        pooled(record, layer, head, (first, min(first + band, rows[1])), keys, step, factors)
        for first in range(rows[0], rows[1], band)
    ]
    return torch.cat(parts)


def pooled(
    record: Record,
    layer: int,
    head: int,
    rows: tuple[int, int],
    keys: tuple[int, int],
    step: int,
    factors: Tensor | None = None,
) -> Tensor:
    """``means`` of a band of rows that is formed at once, of weights times the ``factors (keys,)``."""
    weights = record.region(layer, head, slice(*rows), slice(*keys))
    weights = weights if factors is None else weights * factors
    about = record.layer(layer)
    seen = visible(torch.arange(*rows), torch.arange(*keys), about["causal"], about["window"])
    sums, counts = (fold(values, step) for values in (weights, seen.to(weights.dtype)))
    return torch.where(counts > 0, sums / counts.clamp(min=1), torch.nan)


def visible(rows: Tensor, keys: Tensor, causal: bool, window: int | None) -> Tensor:
    """``(rows, keys)`` bool: which pairs the layer may see."""
    seen = torch.ones(len(rows), len(keys), dtype=torch.bool)
    if causal:
        seen &= keys <= rows[:, None]
    if window is not None:
        seen &= keys > rows[:, None] - window
    return seen


def fold(values: Tensor, step: int) -> Tensor:
    """The sums over ``step`` × ``step`` cells; cells at the end may be smaller."""
    if step == 1:
        return values
    height, width = (-(-size // step) * step for size in values.shape)
    whole = torch.nn.functional.pad(values, (0, width - values.shape[1], 0, height - values.shape[0]))
    return whole.view(height // step, step, width // step, step).sum((1, 3))


def serve(folder: Path, port: int = 8080, open_browser: bool = False) -> None:
    """Serves the record in ``folder`` on the loopback interface until interrupted; port 0 picks a free one.

    Raises:
        FileNotFoundError: no record there. OSError: the port is taken.
    """
    import uvicorn

    server = app(folder)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        raise wrong("--port", str(port), f"a free port, or 0 to pick one ({error.strerror})", OSError) from error
    address = f"http://{HOST}:{listener.getsockname()[1]}/"
    print(f"{address}  (Ctrl-C ends it)", flush=True)
    if open_browser:
        threading.Timer(0.5, webbrowser.open, [address]).start()
    uvicorn.Server(uvicorn.Config(server, log_level="warning")).run(sockets=[listener])
