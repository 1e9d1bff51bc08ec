"""What stands around a mechanism in a network: projections, positions, the block itself."""

from regard.blocks import implicit as implicit
from regard.blocks import latent as latent
from regard.blocks import projections as projections
