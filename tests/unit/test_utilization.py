"""Model FLOPs utilization, by arithmetic. On a GPU nothing of it has been measured here."""

import pytest
from trainingjob_trainer.utilization import Utilization, peak_of


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_peak_is_of_a_known_device(device: str, peak: float | None) -> None:
    assert peak_of(device) == peak


def test_the_share_is_of_all_ranks_peak() -> None:
    assert Utilization(flops_per_step=8e12, peak=4e12).share(4.0) == 0.5
