"""Text on a terminal."""


def printable(text: str) -> str:
    """Escape text from outside to one line of printable characters, so that no control sequence reaches the terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
