"""Held-out logits of a linear classifier of scikit-learn's digits: real rows, 10 classes.

`python benchmarks/data/make_digits_logits.py` writes, beside itself, `digits_logits.npy` (float32)
and `digits_labels.npy` (int64), and prints (scikit-learn 1.9):

    logits (899, 10), labels (899,), accuracy 0.96
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent


def digits_logits() -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, 10] and labels [N] of the held-out half."""
    images, digits = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images, digits, test_size=0.5, random_state=0, stratify=digits
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    logits = model.fit(train_x, train_y).decision_function(test_x)
    return logits.astype(np.float32), np.asarray(test_y, np.int64)


def main() -> None:
    logits, labels = digits_logits()
    np.save(HERE / "digits_logits.npy", logits)
    np.save(HERE / "digits_labels.npy", labels)
    accuracy = np.mean(logits.argmax(-1) == labels)
    print(f"logits {logits.shape}, labels {labels.shape}, accuracy {accuracy:.2f}")


if __name__ == "__main__":
    main()
