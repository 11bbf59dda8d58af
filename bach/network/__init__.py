"""Everything that needs Keras: devices, batches, networks, training, prediction.

Whatever of this room is imported first, Keras is loaded here, so that a terminal shows the
lines of our scripts alone.
"""

from bach.network.quiet import load_keras

load_keras()
