"""Points made up for tests."""

import numpy as np
import pandas as pd


def table(*rows, image_id="A"):
    """Points of x_um, y_um and perhaps score."""
    values = np.array([(*row, 0.5)[:3] for row in rows], float).reshape(-1, 3)
    frame = pd.DataFrame(values, columns=["x_um", "y_um", "score"])
    frame.insert(0, "image_id", image_id)
    return frame


def places(frame):
    return [tuple(row) for row in frame[["x_um", "y_um"]].to_numpy().tolist()]
