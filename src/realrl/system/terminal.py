"""Text on a terminal."""


def printable(text: str) -> str:
    """Text from outside as one line of printable characters, so that no escape sequence reaches the terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
