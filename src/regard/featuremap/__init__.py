"""Feature maps: gates that weigh them, mixtures of branches, necks that join maps of several strides."""
