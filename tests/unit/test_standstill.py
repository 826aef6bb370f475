"""What ranks that stand still say together: who holds up whom, who does not reach whom; nobody is blamed in vain."""

from __future__ import annotations

import pytest
from trainingjob_trainer.failures import of_rank
from trainingjob_trainer.standstill import Stand, apart, hang


def stand(where: str = "all_reduce", waits: bool = True, unheard: list[int] | None = None) -> Stand:
    return Stand(step=40, seconds=300, where=where, waits=waits, unheard=unheard or [])


READS = stand("read", waits=False)


@pytest.mark.parametrize(
    ("stands", "said", "rank"),
    [
        ({0: stand(), 1: stand(), 2: stand()}, "ranks 0 to 2 wait in all_reduce", None),
        (
            {0: stand(), 1: READS, 2: stand("wait")},
            "rank 0 waits in all_reduce, rank 2 waits in wait, rank 1 in read",
            1,
        ),
        ({0: READS, 1: READS, 2: stand()}, "rank 2 waits in all_reduce, ranks 0 to 1 in read", None),
        ({1: stand(), 2: stand()}, "ranks 1 to 2 wait in all_reduce; of rank 0 nothing was heard", 0),
        ({2: stand()}, "rank 2 waits in all_reduce; of ranks 0 to 1 nothing was heard", None),
        (
            {0: stand(), 1: stand(unheard=[5]), 2: stand(unheard=[3])},
            "ranks 0 to 2 wait in all_reduce; train-3 and train-5 do not reach each other",
            None,
        ),
        (
            {0: stand(), 1: READS, 2: stand(unheard=[0])},
            "ranks 0, 2 wait in all_reduce, rank 1 in read; train-0 and train-5 do not reach each other",
            None,
        ),
    ],
)
def test_the_rank_that_holds_up_the_others_is_named_if_it_is_plain_which_one(
    stands: dict[int, Stand], said: str, rank: int | None
) -> None:
    found = hang(stands, 3, [0, 3, 5])
    assert found.cause == f"No pass began for 300 s after step 40: {said}."
    assert (found.rank, found.step) == (rank, 40)
    assert ("network" in found.next_step) == ("reach" in said)


def test_a_rank_that_is_alone_holds_up_nobody() -> None:
    assert hang({0: READS}, 1, [0]).rank is None


def test_pods_have_several_ranks_and_of_many_that_are_cut_apart_some_are_named() -> None:
    stands = {rank: stand(unheard=[4] if rank % 2 == 0 else []) for rank in range(10)}
    cause = hang(stands, 10, [0, 1, 2, 3, 4]).cause
    assert "train-0 and train-4, train-1 and train-4, train-2 and train-4 and 2 more pairs do not reach" in cause


def test_ranks_that_do_not_come_together_blame_nobody_either() -> None:
    failure = of_rank(apart(520, 1, [2]), 1)
    assert (
        failure.cause
        == "The ranks did not come together within 9 minutes; train-1 and train-2 do not reach each other."
    )
    assert failure.rank is None
