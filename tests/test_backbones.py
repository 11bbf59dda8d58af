"""Every family of backbones: builds, is saved and loaded, and serves densely or says why not."""

import pytest

from bach.network.dense import NEAR, SAME
from benchmarks import backbones

# Those that look at their whole input before the last pooling (squeeze-and-excitation).
NOT_DENSE = {"EfficientNetB0", "EfficientNetV2B0", "MobileNetV3Small"}


@pytest.mark.parametrize(
    "backbone",
    ["small", *(pytest.param(x, marks=pytest.mark.slow) for x in backbones.FAMILIES[1:])],
)
def test_a_backbone_is_the_same_function_densely_and_by_patches_or_is_refused(backbone):
    row = backbones.measure(backbone)  # fails if a saved network predicts anything else
    if backbone in NOT_DENSE:
        assert row["dense"] == "no"
        assert f"Received: {backbone.lower()}." in row["reason"] or "model.keras" in row["reason"]
        assert "Use --mode patches" in row["reason"]
    else:
        assert row["dense"] == "yes"
        # NASNetMobile sees too far to be the same, and is said to be not quite.
        assert row["regions"] <= (NEAR if backbone == "NASNetMobile" else SAME)
        assert row["patches"] <= SAME


def test_the_families_are_those_of_keras_applications():
    """A new family of Keras must be measured too."""
    import keras

    kinds = {getattr(keras.applications, x).__module__ for x in backbones.FAMILIES[2:]}
    offered = {
        getattr(keras.applications, x).__module__ for x in dir(keras.applications) if x[0].isupper()
    }
    offered.remove(keras.applications.VGG19.__module__)  # VGG16 with more of the same layers
    assert kinds == offered
