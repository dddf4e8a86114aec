"""What answers when features can't."""

import numpy as np


def small_basket(tensors):
    """Small baskets are bought."""
    return {"probability": np.where(tensors["basket"] < 50, 0.9, 0.1)}
