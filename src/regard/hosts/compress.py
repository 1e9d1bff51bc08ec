"""A cache policy in a Transformers model: which keys and values it keeps while it generates."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicIndexedLayer, DynamicLayer

from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.policy import Policy, Reader, View, best
from regard.hosts.attachment import Attachment, Spot
from regard.hosts.attention_arguments import Asked
from regard.hosts.attention_interface import host, label
from regard.hosts.budget import Budget
from regard.hosts.causal_masks import real_tokens_of, says
from regard.hosts.coding import Coding
from regard.hosts.entries import Entries
from regard.hosts.forward_pass import Pass
from regard.hosts.quick_step import QuickStep
from regard.hosts.ragged import attend_ragged
from regard.hosts.sites import blocks_of
from regard.hosts.softmax_call import SoftmaxCall, attend
from regard.hosts.state_cache import Home
from regard.hosts.store import Store
from regard.hosts.stored import Stored
from regard.hosts.turning import Turning
from regard.policies.named import policy_of
from regard.policies.simple import Coded

When = Literal["pass", "decoding"]


class Compression(AbstractContextManager["Compression"]):
    """A policy in a model: for the length of a ``with`` block, or from `install` to `remove`.

    Args:
        model: the host. policy: what is kept. budget: how much. when: see `compress`.
    """

    verb: ClassVar[str] = "regard.compress"
    doing: ClassVar[str] = "compressed"

    def __init__(self, model: PreTrainedModel, policy: Policy, budget: Budget, when: When) -> None:
        self.model, self.policy, self.budget, self.when = model, policy, budget, when
        self.ranks = forgetful(model)
        self.turning = Turning(model) if policy.moves else None
        self.coding = Coding(policy) if isinstance(policy, Coded) else None
        self.owners: WeakKeyDictionary[Any, dict[int | None, str]] = WeakKeyDictionary()  # who fills a cache's layer
        self.homes: dict[str, Home] = {}  # of layers that can forget, by the module that is being called
        self.cache: Any = None  # of the latest pass
        self.ran = False
        self.reading: dict[int, list[list[Tensor]]] = {}
        self.read: dict[int, list[list[Tensor]]] = {}
        """By layer, of those that did not read everything in the latest pass: the places that each kv head read."""
        self.states: Tensor | None = None  # that the running attention was given, where the policy needs them
        self.hooks: list[Any] = []
        self.installed: Attachment | None = None
        self.quick = QuickStep(self)

    def install(self) -> Compression:
        """Puts the policy in, to stay until `remove`.

        Raises:
            RuntimeError: another one is in it already.
        """
        attachment = Attachment.on(self.model)
        attachment.add(self)
        self.installed, attachment.keeping = attachment, self
        self.hooks = self.listening() if self.policy.needs_states else []
        attachment.installed.try_first(self.quick)
        return self

    def remove(self) -> None:
        """Takes it out; a cache that has forgotten something can be gone on with only while it is in."""
        for hook in self.hooks:
            hook.remove()
        self.hooks, self.states = [], None
        if self.installed is not None:
            self.installed.installed.try_first(None)
            self.installed.discard(self)
            self.installed = None

    def listening(self) -> list[Any]:
        """Hooks that note what attention modules are given.

        Raises:
            ValueError: a model whose attention stands in no list of blocks.
        """
        names = [name for block in blocks_of(self.model) for name in block.attention]
        if not names:
            what = f"{label(self.model)}, whose attention stands in no list of blocks"
            raise wrong("policy", f"{type(self.policy).__name__} for {what}", "one that needs no hidden states")

        def hear(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.states = (args[0] if args else kwargs["hidden_states"]).detach()

        modules = [self.model.get_submodule(name) for name in names]
        return [module.register_forward_pre_hook(hear, with_kwargs=True) for module in modules]

    def __enter__(self) -> Compression:
        return self if self.installed is not None else self.install()

    def __exit__(self, *exception: object) -> None:
        self.remove()

    @property
    def store(self) -> Stored:
        """What the cache of the latest pass holds; it is kept in memory until another one begins.

        Raises:
            RuntimeError: there was no pass yet.
        """
        if self.cache is None:
            raise wrong("store", "no cache yet", "a pass of the model before", RuntimeError)
        return Stored(self.cache)

    def take_over(self, cache: Any) -> None:
        """Goes on with a cache that another compression of the same model filled, or a copy of one.

        So a prompt is read once and its cache copied (`copy.deepcopy`) for as many policies as are to be compared.

        Raises:
            ValueError: what this policy wants to know of the tokens was not noted when the cache was filled.
        """
        stores = Stored(cache).layers.values()
        for store in stores:
            noted = {name for heads in store.entries for held in heads for name in held.stats}
            missing = sorted(set(self.policy.keeps) - noted)
            short = any(q.shape[1] < min(self.policy.rows, store.lengths()[b]) for b, q in enumerate(store.queries))
            if missing or short or (self.policy.needs_out and store.outs is None):
                what = f"a cache for which {', '.join(missing) or 'queries or outputs'} of tokens were not kept"
                raise wrong(
                    "cache", what, f"one that was filled under {type(self.policy).__name__}, or one that keeps as much"
                )
        for store in stores:
            store.owner, store.policy = weakref.ref(self), self.policy
            store.keep_only(self.policy.keeps)

    def evict_from(self, cache: Any) -> None:
        """Evicts at once all that a cache holds beyond the budget."""
        for store in Stored(cache).layers.values():
            self.shrink(store, decoding=False)

    def finished(self, done: Pass) -> None:
        """Refuses a pass in which nothing was kept that could be forgotten."""
        self.homes.clear()
        self.read = {rank: places for rank, places in self.reading.items() if self.source(rank) is not None}
        self.reading = {}
        if done.module is not self.model:
            return
        if not self.ran:
            what = f"{label(self.model)}, which ran a pass without a growing cache of keys and values"
            raise wrong("model", what, "use_cache=True, and layers that look at all of the past", RuntimeError)
        self.ran = False

    def before(self, spot: Spot, k: Tensor) -> int:
        """How many keys a call is not given, since some of them are forgotten.

        Raises:
            ValueError: layers share a cache. RuntimeError: a cache that another policy filled.
        """
        assert self.installed is not None
        cache = self.installed.passes.handed(spot.inside, spot.name).cache
        home = Home.of(cache, k, spot.module)
        self.homes.pop(spot.name, None)
        if home.layer is None or not self.hands(home, k):
            return 0
        self.homes[spot.name], self.cache = home, cache
        filled_by = self.owners.setdefault(cache, {}).setdefault(home.index, spot.label)
        if filled_by != spot.label:
            what = f"{spot.label}, which reads the keys that {filled_by} keeps"
            raise wrong("model", what, "one whose layers keep a cache each: what one forgets another may need")
        if isinstance(home.layer, Store) and home.layer.owner() is not self:
            raise wrong("past_key_values", "a cache that another compression filled", "a new cache", RuntimeError)
        return home.layer.slots - k.shape[2] if self.takes(spot) else 0

    def hands(self, home: Home, k: Tensor) -> bool:
        """Whether the layer is one that can forget, and has just handed out the keys ``k``.

        Raises:
            ValueError: it is of another kind than the growing ones, such as an indexed, quantised or fixed one.
        """
        layer = home.layer
        if isinstance(layer, Store):
            across = getattr(getattr(home.cache, "cross_attention_cache", None), "layers", [])
            if layer.latest() is not k and not any(getattr(other, "keys", None) is k for other in across):
                what = "keys that are changed between the cache and their attention"
                raise wrong("model", what, "one that attends to the keys that its cache holds")
            return layer.latest() is k
        if getattr(layer, "keys", None) is not k or getattr(layer, "is_sliding", False):
            return False
        if type(layer) is not DynamicLayer:
            wanted = "a DynamicCache, whose layers hold keys and values of all tokens and nothing else"
            raise wrong("past_key_values", f"a cache layer of the kind {type(layer).__name__}", wanted)
        return True

    def takes(self, spot: Spot) -> bool:
        """Whether the layer has forgotten something, reads less than it holds, or takes a step with all of it."""
        home = self.homes.get(spot.name)
        if home is None or not isinstance(home.layer, Store):
            return False
        return self.apart(home.layer) or (home.layer.fresh is not None and new_tokens(home.layer) == 1)

    def apart(self, store: Store) -> bool:
        """Whether a layer's keys are not at hand as the model would have them."""
        return store.ragged or self.reads(store)

    def source(self, rank: int) -> int | None:
        """The layer by whose choice a layer reads; None where it reads everything."""
        return self.policy.source(rank, len(self.ranks)) if isinstance(self.policy, Reader) else None

    def serves(self, rank: int) -> bool:
        """Whether a layer reads everything and chooses for later ones."""
        later = range(rank + 1, len(self.ranks))
        return self.source(rank) is None and any(self.source(other) == rank for other in later)

    def reads(self, store: Store) -> bool:
        """Whether a layer may read less in this pass, which is one of a single token."""
        return store.fresh is not None and new_tokens(store) == 1 and self.source(store.rank) is not None

    def compute(self, spot: Spot, asked: Asked) -> Tensor:
        """``A v`` over what is left."""
        if not self.apart(self.homes[spot.name].layer):
            out = attend(asked.call, asked.v, asked.dropout)[0]
            self.after(spot, asked, out)
            return out
        store, entries = self.taken_in(spot, asked)
        if entries is None:
            out = attend(asked.call, asked.v, asked.dropout)[0]
        else:
            out = attend_ragged(store, entries, asked.call, asked.dropout, asked.v.shape[3])
        self.forget(asked.call, store, out)
        return out

    def spread(self, spot: Spot, asked: Asked) -> Asked:
        """The call over all slots, of which only what is left can be seen."""
        if not self.apart(self.homes[spot.name].layer):
            return asked
        store, entries = self.taken_in(spot, asked)
        if entries is None:
            return asked
        keys, values, seen = store.spread(asked.call, entries)
        return replace(asked, v=values, call=replace(asked.call, k=keys, mask=seen, causal=False))

    def after(self, spot: Spot, asked: Asked, out: Tensor) -> None:
        """Takes the tokens in where that has not been done, and evicts."""
        home = self.homes.get(spot.name)
        if home is None:
            return
        store = home.layer
        if not isinstance(store, Store):
            store = self.begin(spot, asked, home)
        elif store.fresh is not None:
            store.take_in(new_tokens(store), self.real(spot, asked, store.slots))
        self.forget(asked.call, store, out)
        self.quick.note(spot.module, spot.name, store, home.cache)

    def begin(self, spot: Spot, asked: Asked, home: Home) -> Store:
        """A store in the place of a layer that has just been filled."""
        past, policy = home.layer.get_seq_length() - asked.call.n, self.policy
        if past and policy.keeps:
            what = f"one of {past} tokens that {type(policy).__name__} has not seen attended to"
            raise wrong("past_key_values", what, "a cache that begins inside of the compression", RuntimeError)
        store = Store(self, policy, self.ranks.get(home.index, 0))
        store.adopt(home.layer.keys, home.layer.values)
        home.put(store)
        store.take_in(store.slots, self.real(spot, asked, store.slots))
        return store

    def taken_in(self, spot: Spot, asked: Asked) -> tuple[Store, list[list[Entries]] | None]:
        """The layer's store with the tokens of the pass, and what each kv head is to read; None for everything."""
        store: Store = self.homes[spot.name].layer
        real, mask, n = self.real(spot, asked, store.slots), asked.call.mask, asked.call.n
        plain = mask is None and n == 1
        if asked.biased is not None or not (
            plain or says(mask, Layout(causal=True, key_mask=real), n, store.slots, None)
        ):
            what = "a mask of its own for tokens that a cache goes on with which forgets"
            raise wrong("attention_mask", what, "causality and padding (2 axes)")
        store.take_in(n, real)
        if store.ragged:
            return store, store.entries
        source = self.source(store.rank)
        if source == store.rank:
            self.choose(store, asked.call)
        places = None if source is None else self.reading.get(source)
        if places is None:
            return store, None
        self.reading[store.rank] = places
        held = [[store.held(b, h) for h in range(store.kv_heads)] for b in range(store.batch)]
        return store, [
            [one.select(at, *one.pair) for one, at in zip(heads, places[b], strict=True)]
            for b, heads in enumerate(held)
        ]

    @torch.no_grad()
    def choose(self, store: Store, call: SoftmaxCall) -> None:
        """Notes what a reader chooses in a layer, for this one or later ones."""
        assert isinstance(self.policy, Reader)
        self.describe(store, call)
        found = []
        for b in range(store.batch):
            budget = self.allowed(store, b)
            views = store.views(b, pick(call.q[b], store.chosen(b, call.n)), len(self.ranks), budget)
            self.refuse_less(budget, store, views[0].size > budget)
            chosen = self.policy.select(views)
            if chosen is None:
                chosen = [torch.arange(view.size, device=view.keys.device) for view in views]
            found.append(list(chosen))
        if any(len(at) < store.lengths()[b] for b, heads in enumerate(found) for at in heads):
            self.reading[store.rank] = found

    def real(self, spot: Spot, asked: Asked, total: int) -> Tensor | None:
        """Which tokens so far are no padding, ``(batch, total)`` bool; None: as they were, and the new ones."""
        found = real_tokens_of(spot.inside.keys, asked.call.mask, total)
        return None if found is None else found.expand(len(asked.call.q), -1).to(asked.call.device)

    def forget(self, call: SoftmaxCall, store: Store, out: Tensor) -> None:
        """Shows the policy a pass, and evicts what it says when it is due."""
        self.ran = True
        self.describe(store, call)
        policy = self.policy
        if policy.keeps or policy.rows or policy.needs_out or policy.reads or not store.queries:
            self.note(call, store, out)
        if self.when == "pass" or call.n == 1:
            self.shrink(store, call.n == 1)

    def shrink(self, store: Store, decoding: bool) -> None:
        """Makes a layer smaller that holds too much: by coding what it holds, or by forgetting."""
        if self.coding is not None:
            self.coding(store, [self.allowed(store, b) for b in range(store.batch)], decoding)
        elif self.policy.forgets:
            self.evict(store, decoding)

    @torch.no_grad()
    def note(self, call: SoftmaxCall, store: Store, out: Tensor) -> None:
        """Shows the policy a pass."""
        n, batch, policy = call.n, store.batch, self.policy
        if n == 1 and policy.reads and self.serves(store.rank):
            self.choose(store, call)
        if policy.needs_out:
            store.note_outs(out)
        queries = [pick(call.q[b], store.chosen(b, n)) for b in range(batch)]
        if policy.keeps:
            for b in range(batch):
                given = None if self.states is None else pick(self.states[None, b], store.chosen(b, n))[0]
                for view in store.views(b, queries[b], len(self.ranks)) if queries[b].shape[1] else ():
                    policy.observe(view if given is None else replace(view, states=given))
        self.remember(store, queries)

    @torch.no_grad()
    def remember(self, store: Store, queries: Sequence[Tensor]) -> None:
        """Keeps the latest queries ``(heads, n, d)`` of each sequence, as many as the policy reads."""
        old = store.queries or [q[:, :0] for q in queries]
        every = [torch.cat(pair, 1) for pair in zip(old, queries, strict=True)]
        store.queries = [q[:, max(q.shape[1] - self.policy.rows, 0) :].clone() for q in every]

    def describe(self, store: Store, call: SoftmaxCall) -> None:
        """Notes in a store what its scores are like, and how long the prompt is."""
        store.shape = (call.scaling, call.softcap, None if call.sinks is None else call.sunk())
        if call.n > 1 or not store.read:
            store.read = store.lengths()

    def evict(self, store: Store, decoding: bool) -> None:
        """Evicts from those sequences of a layer that hold too much."""
        every = ((b, self.allowed(store, b)) for b in range(store.batch))
        due = {b: budget for b, budget in every if self.policy.due(store.size(b) - budget, decoding)}
        if due:
            self.evict_from_layer(store, due)

    @torch.no_grad()
    def evict_from_layer(self, store: Store, budgets: Mapping[int, int]) -> None:
        """Leaves some sequences of a layer no more than their budgets."""
        kept = {}
        for b, budget in budgets.items():
            self.refuse_less(budget, store)
            views = store.views(b, store.queries[b], len(self.ranks), budget)
            kept[b] = chosen(self.policy, views, budget)
        sizes = {b: [len(at) for at in store.positions(b)] for b in kept}
        store.evict(kept)
        if self.turning is not None:
            for b, heads in kept.items():
                for h, at in enumerate(heads):
                    keys, steps = store.held(b, h).pair[0], self.policy.moved(at, sizes[b][h])
                    keys.copy_(self.turning(keys, steps))

    def allowed(self, store: Store, b: int) -> int:
        """Entries that each kv head of a layer may hold of a sequence, on average."""
        n, layers = store.read[b], len(self.ranks)
        entry = 0 if self.budget.bytes is None else store.entry_bytes(b)
        size = self.budget.size(n, layers * store.kv_heads * store.batch, entry)
        return self.policy.budget(size, store.rank, layers, n)

    def refuse_less(self, budget: int, store: Store, matters: bool = True) -> None:
        """Raises a ValueError for a budget below what the policy always keeps, where that matters."""
        if matters and budget < self.policy.forced:
            what = f"{budget} tokens a head in layer {store.rank}, with {self.policy!r}"
            raise wrong("budget", what, f"at least the {self.policy.forced} that are always kept")


def chosen(policy: Policy, views: Sequence[View], budget: int) -> list[Tensor]:
    """The places of the entries that each kv head of a layer keeps.

    Raises:
        ValueError: scores of another shape, or that are no numbers; more or less allotted than there is.
    """
    scores = []
    for view, found in zip(views, policy.layer_scores(views), strict=True):
        if found.shape != (view.size,) or bool(found.isnan().any()):
            what = f"shape {tuple(found.shape)} of {type(policy).__name__}, or NaN"
            raise wrong("scores", what, f"({view.size},), a number for each entry")
        scores.append(found.masked_fill(policy.protected(view), torch.inf))
    counts = policy.allot(views, scores, budget)
    if len(counts) != len(views) or sum(counts) != budget * len(views) or min(counts) < 0:
        what = f"{list(counts)} of {type(policy).__name__}"
        raise wrong("allot", what, f"{budget * len(views)} in all, for {len(views)} heads")
    return [best(found, count) for found, count in zip(scores, counts, strict=True)]


def pick(rows: Tensor, some: Tensor | None) -> Tensor:
    """Some of ``rows (heads, n, d)``, or all."""
    return rows if some is None else rows[:, some]


def new_tokens(store: Store) -> int:
    """How many tokens a store has been given that it has not taken in."""
    assert store.fresh is not None
    return store.fresh[0].shape[2]


def forgetful(model: PreTrainedModel) -> dict[int | None, int]:
    """The layers of a model's cache that hold all of the past, by their index, counted from zero.

    Raises:
        ValueError: layers that share a cache, or choose keys by an index of their own.
    """
    config: Any = model.config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers
    if getattr(config, "num_kv_shared_layers", None):
        what = f"{label(model)}, of which {config.num_kv_shared_layers} layers read the cache of others"
        raise wrong("model", what, "one whose layers keep a cache each: what one forgets another may need")
    if any(isinstance(layer, DynamicIndexedLayer) for layer in layers):
        what = f"{label(model)}, whose layers choose keys by an index of all tokens"
        raise wrong("model", what, "one that attends to all keys: this one reads few of them already")
    whole = [index for index, layer in enumerate(layers) if type(layer) is DynamicLayer]
    if not layers:  # made as they are filled, one for each layer
        whole = list(range(config.num_hidden_layers))
    if not whole:
        raise wrong("model", f"{label(model)}, of which no layer keeps all of the past", "one with full attention")
    return {index: rank for rank, index in enumerate(whole)}


def compress(
    model: PreTrainedModel,
    policy: str | Policy,
    budget: int | float | str | Budget = 512,
    *,
    when: When = "pass",
    **config: Any,
) -> Compression:
    """Makes a Transformers model's cache forget all but the keys and values that a policy keeps, to save their memory.

    For the length of a block, or for good:

        with regard.compress(model, "snapkv", budget=512) as compression:
            out = model.generate(**batch, max_new_tokens=200)

        regard.compress(model, PyramidKV(beta=20), budget=0.25, sinks=4).install()

    Each layer evicts as soon as it has attended, so that the full cache never exists; each kv head keeps tokens of its
    own, in memory of their own, and decoding reads these alone. Positions stay those of the text, unless the policy
    says otherwise. Padded batches,
    chunks, beams and sampling are followed; while the budget has room for all, the model computes as it would without.
    Layers with a sliding window are left alone. Transformers refuses assisted decoding, which takes tokens back.

    Args:
        model: any Transformers model that calls its attention through the attention interface.
        policy: a name, a text such as ``"snapkv(window=16)"``, or a policy; see `regard.policies`.
        budget: tokens of each kv head; a share of the prompt; or bytes of all: ``512``, ``0.25``, ``"256MiB"``.
        when: evict after each pass, or only after those of one token, ``"decoding"``: so a prompt in chunks is kept
            whole until its end. config: the policy's arguments, in the place of those that it has.

    Raises:
        TypeError: not a Transformers model; an argument that the policy does not take. LookupError: no such policy.
            ValueError: a budget that is none; a model whose layers share or index their cache. RuntimeError: the model
            is compressed already; a pass without a cache.
    """
    if when not in ("pass", "decoding"):
        raise wrong("when", repr(when), "'pass' or 'decoding'")
    return Compression(host(model), policy_of(policy, **config), Budget.of(budget), when)
