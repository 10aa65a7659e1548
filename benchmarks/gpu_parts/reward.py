"""A reward that random weights earn now and then, so that groups are mixed and the check's runs have something to learn."""

import zlib


def even(response: str, answer: str) -> bool:
    """Whether the checksum of the response is even."""
    return zlib.crc32(response.encode()) % 2 == 0
