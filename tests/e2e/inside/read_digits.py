"""Which digits are on pictures? Prints a JSON list, in the order of the names of the files.

    python read_digits.py DIRECTORY

Whoever judges has never seen what was drawn, nor what the pipeline learned from: a support vector machine
that learned from the samples that `train_digits.py` leaves out. Needs scikit-learn and pillow.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC


def main(directory: Path) -> None:
    data = load_digits()
    judge = SVC(gamma=0.001, C=10).fit(data.data[1::2], data.target[1::2])
    seen = []
    for path in sorted(directory.iterdir()):
        # As the data: 8 × 8 pixels from 0 to 16.
        small = Image.open(path).convert("L").resize((8, 8), Image.Resampling.BOX)
        seen.append(numpy.asarray(small, dtype=float).reshape(64) / 255 * 16)
    print(json.dumps(judge.predict(numpy.array(seen)).tolist()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
