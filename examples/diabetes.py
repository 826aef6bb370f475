"""scikit-learn's diabetes study, 442 real patients, as the CSV file of examples/diabetes.yaml."""

import csv
import sys
from pathlib import Path

from sklearn.datasets import load_diabetes

if __name__ == "__main__":
    study = load_diabetes(scaled=False)
    with Path(sys.argv[1]).open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow([*study.feature_names, "progression"])
        lines.writerows([*row, value] for row, value in zip(study.data, study.target, strict=True))
