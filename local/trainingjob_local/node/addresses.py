"""The pod addresses of this node, given out round robin: an address rests as long as it can before it is used again."""

import ipaddress
from collections import deque


class AddressesExhausted(Exception):
    """Every address of the range is in use."""


class AddressPool:
    """Addresses of a range `first-last` (both included)."""

    def __init__(self, span: str) -> None:
        first, _, last = span.partition("-")
        low, high = int(ipaddress.IPv4Address(first)), int(ipaddress.IPv4Address(last))
        if high < low:
            raise ValueError(f"{span}: the last address is below the first")
        self._free = deque(str(ipaddress.IPv4Address(number)) for number in range(low, high + 1))

    def take(self) -> str:
        """The address that has been free for the longest time; raises AddressesExhausted."""
        if not self._free:
            raise AddressesExhausted("no pod address is free on this node")
        return self._free.popleft()

    def release(self, address: str) -> None:
        """Give back an address that `take` gave."""
        self._free.append(address)
