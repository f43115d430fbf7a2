"""What was read, and when to stop: beside the functions that look here, whose fingerprints must not change by it."""

READ: list[int] = []
STOP_AFTER = [10**9]


def reset(stop_after: int = 10**9) -> None:
    """Begin to count anew."""
    READ.clear()
    STOP_AFTER[0] = stop_after
