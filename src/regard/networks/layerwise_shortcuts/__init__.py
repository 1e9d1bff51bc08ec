"""Layer-wise shortcuts: a layer attends to the outputs of the layers below it."""
