"""The fenced blocks of a page, and how a block of Python runs."""

import ast
import io
import re
import tokenize
from pathlib import Path


def blocks(page: Path):
    """(language, line number, text) of each fenced block."""
    text = page.read_text()
    assert text.count("```") % 2 == 0, f"{page}: a fence is not closed"
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield found[1], text[: found.start()].count("\n") + 1, found[2]


def run_python(source: str, names: dict) -> None:
    """Execute statement by statement, and hold each value that a comment behind an expression gives."""
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    for statement in ast.parse(source).body:
        if not isinstance(statement, ast.Expr):
            exec(compile(ast.Module([statement], []), "block", "exec"), names)
            continue
        value = eval(compile(ast.Expression(statement.value), "block", "eval"), names)
        said = comments.get(statement.end_lineno or 0, "")
        if re.match(r"[A-Z]\w*\(", said):
            for field, text in re.findall(r'(\w+)="([^"]*)"', said):
                assert getattr(value, field) == text, said
            continue
        try:
            expected = ast.literal_eval(said.partition(";")[0])
        except (SyntaxError, ValueError):
            continue
        assert value == expected, said
