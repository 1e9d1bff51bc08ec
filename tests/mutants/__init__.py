"""Things broken on purpose, a module for each kind: ``ORIGINAL``, which obeys all laws, and ``MUTANTS`` by law."""
