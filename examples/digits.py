"""scikit-learn's handwritten digits, 1,797 real images of 8x8 pixels, as the Parquet file of examples/digits.yaml."""

import io
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits


def digits() -> pa.Table:
    """Columns `image` (PNG, 8-bit grey) and `label` (0 to 9)."""
    bunch = load_digits()
    images = []
    for pixels in bunch.images:  # 0 to 16
        file = io.BytesIO()
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(file, "PNG")
        images.append(file.getvalue())
    return pa.table({"image": images, "label": bunch.target.astype(np.int64)})


if __name__ == "__main__":
    pq.write_table(digits(), sys.argv[1])
