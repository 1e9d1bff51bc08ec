"""The mechanisms, one file each. Importing this package imports every file below it, which is what registers them."""

from __future__ import annotations

import pkgutil
from importlib import import_module

for module in pkgutil.walk_packages(__path__, f"{__name__}."):
    import_module(module.name)
