"""Real data that every machine has, as a user would put it into S3."""

import csv
import io
from pathlib import Path
from typing import Any

from trainingjob_trainer.config import JobConfig

from support.training import job


def digits() -> bytes:
    """scikit-learn's handwritten digits as Parquet: PNG bytes and a label."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = []
    for pixels in bunch.images:
        png = io.BytesIO()
        Image.fromarray((pixels * 15.9375).astype("uint8")).save(png, "PNG")
        images.append(png.getvalue())
    parquet = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": [int(label) for label in bunch.target]}), parquet)
    return parquet.getvalue()


def images(directory: Path, parquet: bytes, **changes: Any) -> JobConfig:
    """A run over labelled images."""
    (directory / "images.parquet").write_bytes(parquet)
    data = {
        "train": {"uri": f"{directory}/images.parquet", "format": "parquet"},
        "validation": {"fraction": 0.1},
        "test": {"fraction": 0.2},
    }
    return job(directory, **{"task": {"kind": "image-classification"}, "data": data, **changes})


def diabetes(directory: Path, **changes: Any) -> JobConfig:
    """A run over scikit-learn's diabetes study as CSV: ten measurements of a patient, and how the disease went on."""
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    with (directory / "diabetes.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow([*bunch.feature_names, "progression"])
        lines.writerows([*row, value] for row, value in zip(bunch.data, bunch.target, strict=True))
    columns = {"format": "csv", "features": bunch.feature_names, "labelField": "progression"}
    data = {
        "train": {"uri": f"{directory}/diabetes.csv", **columns},
        "validation": {"fraction": 0.15},
        "test": {"fraction": 0.2},
    }
    return job(directory, **{"task": {"kind": "regression"}, "data": data, "model": {"mlp": {}}, **changes})
