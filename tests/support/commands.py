"""The command line in this process, and what a stranger's file may hold."""

import random
import re

from realrl import cli

# What steers a terminal: C0 but for the line feed, DEL, C1, and the marks that turn the direction of writing.
STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b2J\x08\r\u202eesrever\u2066[/x][bold]\ud800"


def run(capsys, monkeypatch, *words):
    """(exit status, stdout, stderr) of `realrl WORDS`; an exception that is not the command's own exit comes through."""
    monkeypatch.setattr("sys.argv", ["realrl", *map(str, words)])
    status = 0
    try:
        cli.main()
    except SystemExit as end:
        status = end.code or 0
    out, err = capsys.readouterr()
    return status, out, err


def refused_or_fine(result):
    """A command that goes through, or one line that says what is wrong."""
    status, _, err = result
    assert status in (0, 1), result
    assert status == 0 or err.strip().split("\n")[-1].startswith("realrl: error"), result
    assert "Traceback" not in err


def mutations(data: bytes, seed: int, count: int) -> list[bytes]:
    """Damaged copies of a file: cut, flipped, repeated, filled with what JSON, TOML and UTF-8 do not allow."""
    rng = random.Random(seed)
    poison = [
        b"\x00",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b'"\\ud800"',
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9" * 5000,
        b"[" * 3000,
        b'{"a":' * 3000,
    ]
    poison += [
        b"a." * 3000 + b"a = 1\n",
        b"null",
        b"true",
        b'""',
        b"\xe2\x80\xa8",
        b"\x1b[2J",
        b"\n",
        b"\r",
        b"'''",
        b'"',
        b"{",
        b"}",
        b",",
        b"-1",
        b"1979-05-27",
    ]
    made = [b"", data[: len(data) // 2], data * 2, data.replace(b"\n", b"\r"), data.replace(b":", b"="), *poison]
    while len(made) < count:
        where = rng.randrange(len(data) + 1)
        kind = rng.random()
        if kind < 0.3:
            made.append(data[:where] + rng.choice(poison) + data[where:])
        elif kind < 0.5:
            end = rng.randrange(where, len(data) + 1)
            made.append(data[:where] + rng.choice(poison) + data[end:])
        elif kind < 0.7:
            made.append(data[:where] + bytes([rng.randrange(256)]) + data[where + 1 :])
        elif kind < 0.85:
            # A value of another type: what stands between a colon, an equals sign or a comma and the next one.
            spots = [m.span(1) for m in re.finditer(rb"[:=,]\s*([^,:=\n{}\[\]]+)", data)] or [(where, where)]
            start, end = rng.choice(spots)
            made.append(
                data[:start]
                + rng.choice([b"[1]", b'{"a":1}', b'"x"', b"null", b"-7", b"1e400", b"true", *poison[:8]])
                + data[end:]
            )
        else:
            made.append(data[:where])
    return made[:count]
