"""The bugs of `make test-mutants` can still be put in: code that they change may change."""

from pathlib import Path

import mutants
import pytest

ROOT = Path(mutants.__file__).parent.parent


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_has_its_place_and_its_tests(mutant: mutants.Mutant) -> None:
    assert (mutants.TRAINER / mutant.file).read_text().count(mutant.old) == 1
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / file).read_text()
