"""What the scheduler's side tells the workers with each step."""

from __future__ import annotations

from dataclasses import dataclass, field

from .plan import Part


@dataclass
class Move:
    """Chunks of one request that go from or to blocks."""

    request: str
    session: int
    parts: list[Part]
    # Of a store whose blocks are kept for it, a number of its own: each worker says it once when it needs them no more. 0: none.
    number: int = 0


@dataclass
class Step:
    """One step's work."""

    # Which weights: it changes when the cache is reset, and everything before it is another space's.
    generation: int = 0
    # Loads beside the steps; each is answered by the request's name among the received ones.
    loads: list[Move] = field(default_factory=list)
    # Loads that this step's forward pass waits for, layer by layer.
    layered: list[Move] = field(default_factory=list)
    # Stores of what is written when this step's forward pass is done.
    stores: list[Move] = field(default_factory=list)
    # Requests whose blocks are about to be used anew: their stores must be over first.
    preempted: set[str] = field(default_factory=set)
    # Finished requests whose blocks are kept until the workers say that their stores are over.
    held: set[str] = field(default_factory=set)
