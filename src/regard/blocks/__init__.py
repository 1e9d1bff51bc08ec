"""What stands around a mechanism in a network: projections, positions, the block itself."""

from regard.blocks import gates as gates
from regard.blocks import implicit as implicit
from regard.blocks import latent as latent
from regard.blocks import layer_norm as layer_norm
from regard.blocks import mimetic as mimetic
from regard.blocks import mixture as mixture
from regard.blocks import nexus as nexus
from regard.blocks import planted as planted
from regard.blocks import projections as projections
from regard.blocks import rank as rank
from regard.blocks import relational as relational
from regard.blocks import short_long as short_long
from regard.blocks import transnormer as transnormer
