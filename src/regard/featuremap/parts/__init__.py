"""The parts of composed gates: how a map is pooled, how what was pooled is mixed, how the outcome is squashed."""
