"""Everything that needs Keras: devices, batches, networks, training, prediction."""
