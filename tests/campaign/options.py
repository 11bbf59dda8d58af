"""What a kind of input needs that scripts define: options of a run, a learner."""

import dataclasses

from bach.core import options
from bach.core.options import again, option


@dataclasses.dataclass(frozen=True)
class Options(options.Shared):
    """Options of a run that does nothing."""

    run_dir: str = again(options.Shared, "run_dir", "runs/x")
    epochs: int = option(25, "passes", at_least=1)
    weights: str = option("none", "where to start", path=True)
    patches_dir: str | None = option(None, "shared patches", path=True)


def tiny_learner():
    """A compiled network of a few weights, its optimizer built."""
    import keras

    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dense(3)(inputs)))
    model.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9), loss="mse")
    model.optimizer.build(model.trainable_variables)
    return model
