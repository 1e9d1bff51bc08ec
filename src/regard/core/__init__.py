"""The contract that everything in regard is written against."""
