"""The record of what a model attended to in one text: a folder of plain files. Its format stands in docs/record.md."""

from __future__ import annotations

import html
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from regard.core.build import build_text
from regard.core.errors import reason, wrong
from regard.core.layout import Layout
from regard.hosts.mechanism_call import ImplicitAttention, normalised_magnitude
from regard.hosts.softmax_call import SoftmaxCall

FORMAT, VERSION = "regard-record", 1


@dataclass(repr=False)
class Record:
    """What one pass over one text left.

    Args:
        header: record.json. tokens: tokens.json. arrays: the probes' results by ``LAYER/name``.
        tensors: what A of the layers follows from, by ``LAYER/name``; None where it was not kept.
    """

    header: dict[str, Any]
    tokens: dict[str, Any]
    arrays: dict[str, Tensor]
    tensors: dict[str, Tensor] | None = None

    @property
    def n(self) -> int:
        """The number of tokens."""
        return self.header["tokens"]

    def sizes(self, layer: Mapping[str, Any]) -> tuple[int, int]:
        """How many queries and keys the maps of a layer have, which are of two texts in an encoder-decoder."""
        rows, keys = (self.header["source_tokens"] if text == "source" else self.n for text in reads(layer))
        return rows, keys

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The layers' descriptions, by execution."""
        return self.header["layers"]

    def layer(self, index: int) -> dict[str, Any]:
        """The description of one layer."""
        for layer in self.layers:
            if layer["index"] == index:
                return layer
        raise wrong("layer", str(index), f"one of {[layer['index'] for layer in self.layers]}")

    def __repr__(self) -> str:
        model, tokens = self.header["model"]["name"], self.header["tokens"]
        return f"<Record of {model}: {tokens:,} tokens, {len(self.layers)} layers; save(folder) writes it>"

    def _repr_html_(self) -> str:
        """The page itself, inline, for notebooks."""
        page = import_module("regard.web.page")  # a room above this one, wanted by notebooks alone
        with tempfile.TemporaryDirectory() as scratch:
            self.write(Path(scratch))
            content = html.escape(page.page_html(Path(scratch)), quote=True)
        return f'<iframe srcdoc="{content}" style="width: 100%; height: 720px; border: 0"></iframe>'

    @torch.no_grad()
    def region(self, layer: int, head: int, rows: slice, keys: slice) -> Tensor:
        """Any part of a map, ``(rows, keys)`` float32, recomputed exactly from what was kept.

        Raises:
            ValueError: the tensors were not kept; no such layer or head; an empty or strided slice.
        """
        if self.tensors is None:
            raise wrong("record", "no kept tensors", "a record made with keep=True")
        about = self.layer(layer)
        if not 0 <= head < about["heads"]:
            raise wrong("head", str(head), f"0 to {about['heads'] - 1}")
        n, m = self.sizes(about)
        first, last = bounds("rows", rows, n)
        start, stop = bounds("keys", keys, m)
        if f"{layer}/lse" not in self.tensors:
            return self.implied_region(about, head, slice(first, last), slice(start, stop))
        q, k, lse = (self.tensors[f"{layer}/{name}"] for name in ("q", "k", "lse"))
        group = head // (about["heads"] // about["kv_heads"])
        call = SoftmaxCall(
            q[None, head : head + 1],
            k[None, group : group + 1],
            about["scaling"],
            causal=about["causal"],
            window=about["window"],
            softcap=about["softcap"],
        )
        index = torch.arange(first, last)
        weights = torch.exp(call.scores(index, start, stop)[0, 0] - lse[head, first:last, None])
        visible = call.visible(index, start, stop)
        return weights if visible is None else weights.masked_fill(~visible[0, 0], 0)

    def value_norms(self, layer: int, head: int) -> Tensor:
        """``(m,)`` float32: ``‖v_j‖`` of each key's value in a head, by which ``‖A_ij v_j‖ = A_ij ‖v_j‖`` follows.

        Raises:
            ValueError: no such layer; one whose values are not known.
        """
        heads = self.layer(layer)["heads"]
        if f"{layer}/value_norms" not in self.arrays:
            raise wrong("layer", f"{layer}, of whose values nothing was kept", "a softmax layer, or one linear in them")
        norms = self.arrays[f"{layer}/value_norms"]
        return norms[head * len(norms) // heads]

    def implied_region(self, about: Mapping[str, Any], head: int, rows: slice, keys: slice) -> Tensor:
        """`region` of a layer whose mechanism is rebuilt from its text and parameters."""
        source, parts = self.implied(about), []
        for block in source.blocks(torch.arange(rows.start, rows.stop)):
            weights = source.weights(block)[:, head]
            parts.append((normalised_magnitude(weights) if about["shares"] else weights)[0, :, keys])
        return torch.cat(parts).float()

    def implied(self, about: Mapping[str, Any]) -> ImplicitAttention:
        """The call of such a layer."""
        prefix = f"{about['index']}/"
        own = {name.removeprefix(prefix): x for name, x in (self.tensors or {}).items() if name.startswith(prefix)}
        v = own.pop("v")[None] if "v" in own else None
        sizes = {"heads": about["heads"], "head_dim": about["head_dim"], "layer_index": about["index"]}
        sizes |= {} if v is None else {"value_dim": v.shape[3]}
        mechanism = build_text(about["mechanism"], sizes)
        mechanism.load_state_dict({name: own.pop(f"mechanism.{name}") for name in mechanism.state_dict()})
        q, k = (own.pop(name)[None] for name in ("q", "k"))
        signals = {name.removeprefix("signal."): signal[None] for name, signal in own.items()}
        return ImplicitAttention(mechanism, q, k, Layout(causal=about["causal"]), signals, v)

    def save(self, folder: str | Path, extra: Mapping[str, Callable[[Path], str]] | None = None) -> Path:
        """Writes the folder, whole or not at all; a record that stands there is replaced.

        Args:
            folder: where to. extra: further text files by name, made from the folder that is being written.

        Raises:
            FileExistsError, NotADirectoryError: something else stands there. OSError: it cannot be written, and why.
        """
        folder = Path(folder).absolute()
        check_folder(folder)
        try:
            return self.put(folder, extra or {})
        except (OSError, SafetensorError) as error:
            raise wrong("folder", f"{folder}: {reason(error)}", "a folder that can be written", OSError) from error

    def put(self, folder: Path, extra: Mapping[str, Callable[[Path], str]]) -> Path:
        """`save`, once the folder is known to be free."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            fresh = Path(scratch) / "new"
            fresh.mkdir()
            self.write(fresh)
            for name, make in extra.items():
                (fresh / name).write_text(make(fresh), encoding="utf-8")
            if folder.exists():
                folder.rename(Path(scratch) / "old")
            fresh.rename(folder)
        return folder

    def write(self, folder: Path) -> None:
        """The files themselves."""
        write_tensors(folder / "arrays.safetensors", self.arrays)
        if self.tensors is not None:
            write_tensors(folder / "tensors.safetensors", self.tensors)
        (folder / "tokens.json").write_text(json.dumps(self.tokens, ensure_ascii=False), encoding="utf-8")
        (folder / "record.json").write_text(json.dumps(self.header, ensure_ascii=False, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Record:
        """Reads a folder that `save` wrote.

        Raises:
            FileNotFoundError: no record there. ValueError: another format or version, or a damaged file.
        """
        folder = Path(folder)
        if not (folder / "record.json").is_file():
            raise wrong(
                "folder", f"{folder}, which has no record.json", "a folder that `regard look` left", FileNotFoundError
            )
        header = read_json(folder / "record.json")
        if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("version") != VERSION:
            came = (header.get("format"), header.get("version")) if isinstance(header, dict) else type(header).__name__
            raise wrong("record.json", f"format and version {came}", f"{(FORMAT, VERSION)}")
        tokens = read_json(folder / "tokens.json")
        arrays = read_tensors(folder / "arrays.safetensors")
        tensors = read_tensors(folder / "tensors.safetensors") if header.get("kept") else None
        return cls(header, tokens, arrays, tensors)


def reads(layer: Mapping[str, Any]) -> list[str]:
    """Whose tokens the queries and the keys of a layer are: ``"target"``, the record's text, or ``"source"``."""
    return layer.get("reads", ["target", "target"])


def bounds(name: str, part: slice, n: int) -> tuple[int, int]:
    """``(first, last + 1)`` of a plain slice of ``n``."""
    start, stop, step = part.indices(n)
    if step != 1 or stop <= start:
        raise wrong(name, f"{part}", f"a slice of at least one of the {n} tokens, with step 1")
    return start, stop


def check_folder(folder: str | Path) -> None:
    """Raises unless a record can be saved at ``folder``: nothing stands there, or a record, or an empty folder."""
    folder = Path(folder).absolute()
    for parent in folder.parents:
        if parent.exists() and not parent.is_dir():
            raise wrong("folder", f"{folder}, where {parent.name} is a file", "a folder's path", NotADirectoryError)
    if folder.exists() and not replaceable(folder):
        raise wrong("folder", f"{folder}, which is no record", "a new folder or an old record", FileExistsError)
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise wrong(
            "folder", f"{folder}: no permission to write in {there}", "one that can be written", PermissionError
        )


def free_name(folder: Path) -> Path:
    """``folder``, or ``folder-2``, ``folder-3`` … where a record stands there already."""
    names = chain([folder], (folder.with_name(f"{folder.name}-{number}") for number in count(2)))
    return next(name for name in names if not name.exists() or (name.is_dir() and not any(name.iterdir())))


def replaceable(folder: Path) -> bool:
    """Whether saving may replace what stands at ``folder``: a record, or an empty folder."""
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        return read_json(folder / "record.json").get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file with the permissions of any new file; safetensors itself lets only the owner read."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(mode)


def read_json(path: Path) -> Any:
    """The parsed file; an error that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise wrong(path.name, "no file", "the file of a whole record", FileNotFoundError) from error
    except ValueError as error:
        raise wrong(path.name, f"broken JSON ({error})", "the file of a whole record") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The arrays of a safetensors file; an error that names it."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise wrong(path.name, "no file", "the file of a whole record", FileNotFoundError) from error
    except SafetensorError as error:
        raise wrong(path.name, f"a broken file ({error})", "the file of a whole record") from error
