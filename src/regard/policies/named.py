"""From a name or a text to a policy."""

from __future__ import annotations

from dataclasses import fields, replace
from importlib import import_module
from typing import Any

from regard.core.atlas import entries
from regard.core.build import instantiate
from regard.core.errors import did_you_mean, wrong
from regard.core.policy import Policy, Reader
from regard.core.spec import parse


def policy_of(given: str | Policy, **config: Any) -> Policy:
    """The policy that is meant, with the arguments ``config`` in the place of those that it has.

    Raises:
        LookupError: no such policy; the message names those that there are. TypeError: something else than a policy, or
            an argument that it does not take.
    """
    if isinstance(given, Policy):
        takes = [field.name for field in fields(given)]
        for name in config:
            if name not in takes:
                offered = f"one of {type(given).__name__}'s: {', '.join(takes)}{did_you_mean(name, takes)}"
                raise wrong(name, "an unknown argument", offered, TypeError)
        return replace(given, **config)
    if not isinstance(given, str):
        wanted = "the name of a policy, or a policy as an object, such as regard.policies.SnapKV()"
        raise wrong("policy", f"{given!r}, a {type(given).__name__}", wanted, TypeError)
    spec, known = parse(given, "policy"), by_name()
    if spec.name not in known:
        offered = f"one of {', '.join(sorted(known))}{did_you_mean(spec.name, known)}"
        raise wrong("policy", repr(given), offered, LookupError)
    with spec.underlined():
        return instantiate({}, spec.name, known[spec.name], {**spec.arguments, **config})


def by_name() -> dict[str, type[Policy]]:
    """Every policy of regard's by its names in the atlas, or by that of its class where it is in none."""
    room = import_module("regard.policies")
    classes = [getattr(room, name) for name in room.__all__]
    found: dict[str, type[Policy]] = {}
    for thing in classes:
        if isinstance(thing, type) and issubclass(thing, Policy) and thing not in (Policy, Reader):
            where = f"{thing.__module__}.{thing.__qualname__}"
            names = [
                name
                for entry in entries(kind="policy")
                if entry.where == where
                for name in (entry.name, *entry.aliases)
            ]
            found |= dict.fromkeys(names or [thing.__name__.lower()], thing)
    return found
