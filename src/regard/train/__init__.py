"""Training: the small models that ship, from nothing, on any machine.

`stages` says what is practised when, `loop` practises it and can be stopped at any step, `tiny` puts model, corpus and
tasks together, `evaluate` measures what came out, `card` writes it down.
"""
