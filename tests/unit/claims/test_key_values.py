"""Spans of the lookups are whole lines."""

import pytest

from regard.claims.testbeds.key_values import CONTEXT, SPANS, drawn, smollm2


@pytest.mark.slow
def test_spans_are_lines():
    _, tokenizer = smollm2()
    (context,) = drawn(1, 0).contexts
    assert len(context) == CONTEXT
    lines = tokenizer.decode(context).splitlines(keepends=True)[1:]
    assert [tokenizer.decode(context[start:stop]) for start, stop in SPANS] == lines
