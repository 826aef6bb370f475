"""Real data that every machine has, as a user would put it into S3."""

import io


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
