"""Language models around Lightning attention."""
