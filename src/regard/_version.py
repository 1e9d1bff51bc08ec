"""The version of the package, apart from it, so that those below may say it."""

__version__ = "0.2.0"
