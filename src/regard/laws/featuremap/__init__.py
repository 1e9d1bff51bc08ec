"""The laws of what feature maps go through: gates, mixtures, necks."""
