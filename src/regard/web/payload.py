"""A record's arrays, packed for the page: byte strings that are small and that a browser decodes one head at a time.

Every packed array is deflated (raw, no header). Before that,

* per-token statistics and probabilities (float16: 3.3 digits) are split into *planes*, all most significant bytes
  first, then the others, because equal bytes side by side compress better;
* the means of what is below the page's threshold, one byte a cell (`cells`), are differences to the row of cells above;
* the edges of a head are one stream of *varints* (7 bits a byte, lowest first, the top bit says that more follows): the
  number of edges of each row, then for each edge its key as the distance from the key before it in the row, then its
  weight in thousandths;
* queries and keys are there of a few heads (`vectors`).

So a weight on the page is the record's, rounded to three decimals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from regard.core.errors import wrong
from regard.records.format import reads
from regard.web.cells import codes, visible_pairs, weak_means
from regard.web.coding import deflate, planes, varints
from regard.web.vectors import Blobs, encoded, vectors

MAX_EDGES = 3_100_000  # under 7 MB of page; a record with more loses its weakest edges, and the page says so
EDGE_BYTES = 1.9
SCORES = ("entropy", "distance", "sink", "induction", "previous_token", "duplicate_token", "kept_mass")
PER_TOKEN = ("received", "entropy_rows", "value_norms")
STACKS = (("source", "source"), ("target", "target"), ("target", "source"))
"""The order of layers on the page: the encoder's, the decoder's, and those between the two texts."""
PREDICTED = ("probabilities", "log_probability")


@dataclass(frozen=True)
class Payload:
    """What the page holds: ``header`` as JSON, and ``blobs`` by name (``0/rest``, ``0/edges/3`` …)."""

    header: dict[str, Any]
    blobs: Iterator[tuple[str, bytes]]


def pack(folder: Path, beside: Path | None = None) -> Payload:
    """The payload of the record in ``folder``, and of one ``beside`` it, whose blobs are named ``beside/0/rest`` ….

    The one beside it is of the same heads and as many tokens: from before an edit, or of another prompt.

    Raises:
        FileNotFoundError: no record there. ValueError: a record of another format or version, or two of other lengths
            or other heads.
    """
    header, blobs = pack_one(folder)
    if beside is None:
        return Payload(header, blobs)
    other, more = pack_one(beside, alone=False)
    for name, mine, its in (
        ("length", *(len(h["tokens"]["ids"]) for h in (header, other))),
        ("source", *(h["tokens"].get("source", {}).get("ids") for h in (header, other))),
        ("heads", *([(layer["index"], layer["heads"]) for layer in h["record"]["layers"]] for h in (header, other))),
        ("cells", header["record"]["cells"], other["record"]["cells"]),
    ):
        if mine != its:
            what = f"one of the same {name}, such as before an edit, or of another prompt as long"
            raise wrong("beside", f"a record of other {name}", what)
    if other["tokens"]["ids"] == header["tokens"]["ids"]:
        del other["tokens"]
    return Payload(header | {"beside": other}, chain(blobs, ((f"beside/{name}", blob) for name, blob in more)))


def pack_one(folder: Path, alone: bool = True) -> tuple[dict[str, Any], Iterator[tuple[str, bytes]]]:
    """The header and the blobs of one record; ``alone`` False of one beside another, without queries and keys."""
    record = read_header(folder)
    neurons, more = vectors(folder, record) if alone else ([], Blobs())
    record["layers"].sort(key=lambda layer: STACKS.index(tuple(reads(layer))))
    tokens = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    with safe_open(folder / "arrays.safetensors", framework="numpy") as arrays:
        names = set(arrays.keys())
        scores = [
            {
                name: _plain(arrays.get_tensor(f"{layer['index']}/{name}"))
                for name in SCORES
                if f"{layer['index']}/{name}" in names
            }
            for layer in record["layers"]
        ]
        threshold = page_threshold(folder, record, encoded(more))
        header = {"record": record, "tokens": tokens, "scores": scores, "threshold": threshold / 1000}
        header["neurons"] = [list(head) for head in neurons]
        header["values"] = [layer["index"] for layer in record["layers"] if f"{layer['index']}/value_norms" in names]
        header["marked"] = [layer["index"] for layer in record["layers"] if f"{layer['index']}/kept" in names]
        header["predicted"] = arrays.get_slice("next/ids").get_shape()[1] if "next/ids" in names else 0
        if record["rows"]:
            rows = (_computed(arrays, record, layer) for layer in record["layers"])
            header["computed"] = [np.flatnonzero(known).tolist() for known in rows]
    return header, chain(_blobs(folder, record, threshold), more.items())


def read_header(folder: Path) -> dict[str, Any]:
    """``record.json`` of the folder, checked to be a record that this version reads."""
    path = folder / "record.json"
    if not path.is_file():
        raise wrong(
            "folder",
            f"{str(folder)!r}, which has no record.json",
            "a folder that `regard look` wrote",
            FileNotFoundError,
        )
    record = json.loads(path.read_text(encoding="utf-8"))
    found = (record.get("format"), record.get("version"))
    if found != ("regard-record", 1):
        raise wrong(
            "record.json", f"format and version {found}", "('regard-record', 1): look again with this version of regard"
        )
    return record


def page_threshold(folder: Path, record: dict[str, Any], taken: int = 0) -> int:
    """The smallest weight that the page keeps, in thousandths: the record's own unless those are over `MAX_EDGES`.

    Args:
        taken: bytes of the page that queries and keys take, and edges give way to.
    """
    counts = np.zeros(1002, dtype=np.int64)
    with safe_open(folder / "arrays.safetensors", framework="numpy") as arrays:
        for layer in record["layers"]:
            counts += np.bincount(_thousandths(arrays.get_tensor(f"{layer['index']}/edge_weights")), minlength=1002)
    at_least = counts[::-1].cumsum()[::-1]
    kept = int(np.flatnonzero(at_least <= max(0, MAX_EDGES - taken / EDGE_BYTES))[0])
    return max(math.ceil(record["edge_threshold"] * 1000 - 1e-6), kept)


def _side(record: dict[str, Any]) -> int:
    """The side of all maps: the number of tokens of the longest text."""
    return max(record["tokens"], record.get("source_tokens", 0))


def _sizes(record: dict[str, Any], layer: dict[str, Any]) -> tuple[int, int]:
    """How many queries and keys a layer's maps have."""
    rows, keys = (record["source_tokens" if text == "source" else "tokens"] for text in reads(layer))
    return rows, keys


def _computed(arrays: Any, record: dict[str, Any], layer: dict[str, Any]) -> np.ndarray:
    """``(n,)`` bool: the layer's rows that were not left out by sampling, which draws others in each layer."""
    if not record["rows"]:
        return np.ones(_side(record), dtype=bool)
    return ~np.isnan(arrays.get_tensor(f"{layer['index']}/entropy_rows")).all(0)


def _blobs(folder: Path, record: dict[str, Any], threshold: int) -> Iterator[tuple[str, bytes]]:
    n, cells = _side(record), record["cells"]
    with safe_open(folder / "arrays.safetensors", framework="numpy") as arrays:
        names = set(arrays.keys())
        if "next/ids" in names:
            yield "next/ids", deflate(varints(arrays.get_tensor("next/ids").ravel().astype(np.int64)))
            for name in PREDICTED:
                yield f"next/{name}", deflate(planes(arrays.get_tensor(f"next/{name}").astype("<f2")))
        for layer in record["layers"]:
            index = layer["index"]
            for name in PER_TOKEN:
                if f"{index}/{name}" in names:
                    yield f"{index}/{name}", deflate(planes(arrays.get_tensor(f"{index}/{name}").astype("<f2")))
            if f"{index}/kept" in names:
                yield f"{index}/kept", deflate(np.packbits(arrays.get_tensor(f"{index}/kept"), axis=1).tobytes())
            queries, answers = _sizes(record, layer)
            computed = _computed(arrays, record, layer) & (np.arange(n) < queries)
            pairs = visible_pairs(n, cells, layer, computed, answers)
            pooled, starts, rows, keys, weights = (
                arrays.get_tensor(f"{index}/{name}")
                for name in ("pooled", "edge_starts", "edge_rows", "edge_keys", "edge_weights")
            )
            rest = np.zeros((layer["heads"], cells, cells), dtype=np.uint8)
            for head in range(layer["heads"]):
                first, last = int(starts[head]), int(starts[head + 1])
                thousandths = _thousandths(weights[first:last])
                yield f"{index}/edges/{head}", pack_edges(rows[head], keys[first:last], thousandths, threshold)
                kept = thousandths >= threshold
                edges = (np.repeat(np.arange(n), np.diff(rows[head]))[kept], keys[first:last][kept])
                heavy = weights[first:last][kept].astype(np.float64)
                rest[head] = codes(weak_means(pooled[head], pairs, *edges, heavy, n), threshold / 1000)
            yield f"{index}/rest", deflate(np.diff(rest, axis=1, prepend=np.uint8(0)).tobytes())


def pack_edges(rows: np.ndarray, keys: np.ndarray, weights: np.ndarray, threshold: int) -> bytes:
    """One head's edges from ``threshold`` up; ``rows`` (n + 1) are offsets into ``keys`` and ``weights``."""
    row_of = np.repeat(np.arange(len(rows) - 1), np.diff(rows))
    kept = weights >= threshold
    row_of, keys, weights = row_of[kept], keys[kept].astype(np.int64), weights[kept]
    before = np.concatenate([[0], keys[:-1]])
    before[np.concatenate([[True], row_of[1:] != row_of[:-1]])[: len(keys)]] = 0
    counts = np.bincount(row_of, minlength=len(rows) - 1)
    return deflate(varints(np.concatenate([counts, keys - before[: len(keys)], weights])))


def _thousandths(weights: np.ndarray) -> np.ndarray:
    return np.rint(weights.astype(np.float64) * 1000).astype(np.int64)


def _plain(values: np.ndarray) -> list[Any]:
    """Nested lists for JSON, where NaN has no name: null."""
    return np.where(np.isfinite(values), np.round(values.astype(np.float64), 6), None).tolist()  # type: ignore[call-overload]
