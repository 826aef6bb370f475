"""Where each rank is when none goes on, and what that says together: who holds up whom, and who does not reach whom."""

from __future__ import annotations

import traceback
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import FrameType
from typing import Self

from pydantic import Field

from .config import Config
from .errors import Hang

NEXT_STEP = "Compare the stacks of all ranks in the log of index 0: the one that differs holds up the others."
CUT_APART = "Look at the network between these pods and at their nodes; a NetworkPolicy must let them reach each other."
# Files whose functions wait for other ranks. Torch's operators are called through a file of its own.
_WAITING = ("/torch/distributed/", "/trainingjob_trainer/parallel/")
_CALLING = "/torch/_ops.py"
MOST_TOLD = 3  # pairs of pods


class Stand(Config):
    """Where one rank stands still."""

    step: int
    seconds: float = Field(description="In which it began no pass.")
    where: str = Field(max_length=100, description="The function that its main thread is in.")
    waits: bool = Field(description="Whether it is there for other ranks.")
    unheard: list[int] = Field(default=[], max_length=4096, description="Indexes of pods that do not answer its pod.")

    @classmethod
    def of(cls, frame: FrameType, step: int, seconds: float) -> Self:
        """Of a rank whose main thread is in `frame`."""
        calls = [call for call in traceback.extract_stack(frame) if not call.filename.endswith(_CALLING)]
        waits = any(part in calls[-1].filename for part in _WAITING)
        return cls(step=step, seconds=seconds, where=calls[-1].name[:100], waits=waits)


def hang(stands: Mapping[int, Stand], ranks: int, pods: Sequence[int]) -> Hang:
    """What the stands (at least one) of an attempt of `ranks` ranks on the pods of these indexes come to.

    Its rank is the one that holds up all others, if that is plain: of a network that is cut nobody is to blame.
    """
    first = stands[min(stands)]
    said = f"No pass began for {first.seconds:g} s after step {first.step}: {_where(stands)}"
    silent = [rank for rank in range(ranks) if rank not in stands]
    if silent:
        said += f"; of {_ranks(silent)} nothing was heard"
    here = {rank: pods[rank * len(pods) // ranks] for rank in stands}
    pairs = [(here[rank], other) for rank, stand in stands.items() for other in stand.unheard]
    if pairs:
        return Hang(f"{said}; {_pairs(pairs)}.", CUT_APART, step=first.step)
    holding = [*silent, *(rank for rank, stand in stands.items() if not stand.waits)]
    rank = holding[0] if len(holding) == 1 and ranks > 1 else None
    return Hang(f"{said}.", NEXT_STEP, rank=rank, step=first.step)


def apart(seconds: float, pod: int, unheard: Sequence[int]) -> Hang:
    """Ranks that are all there and did not come together, as one in this pod sees it."""
    said = f"The ranks did not come together within {seconds / 60:.0f} minutes"
    if not unheard:
        return Hang(f"{said}.", NEXT_STEP)
    return Hang(f"{said}; {_pairs([(pod, other) for other in unheard])}.", CUT_APART)


def _where(stands: Mapping[int, Stand]) -> str:
    """All ranks by what they are at, those that wait first."""
    places: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for rank, stand in sorted(stands.items()):
        places[not stand.waits, stand.where].append(rank)
    return ", ".join(
        f"{_ranks(ranks)} {'waits' if len(ranks) == 1 else 'wait'} in {where}"
        if not busy
        else f"{_ranks(ranks)} in {where}"
        for (busy, where), ranks in sorted(places.items())
    )


def _pairs(pods: Iterable[tuple[int, int]]) -> str:
    pairs = sorted({(min(pair), max(pair)) for pair in pods})
    told = [f"train-{first} and train-{second}" for first, second in pairs[:MOST_TOLD]]
    more = f" and {len(pairs) - MOST_TOLD} more pairs" if len(pairs) > MOST_TOLD else ""
    return f"{', '.join(told)}{more} do not reach each other"


def _ranks(ranks: Iterable[int]) -> str:
    """`rank 1`, or `ranks 0, 2 to 5`."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    told = [f"{first}" if first == last else f"{first} to {last}" for first, last in spans]
    return f"rank{'s' if len(told) > 1 or ' ' in told[0] else ''} {', '.join(told)}"
