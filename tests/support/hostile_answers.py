"""Nasty answers: a list by hand, and an endless stream made of the pieces of LaTeX that graders stumble over."""

import random
import signal
from collections.abc import Iterator

from realrl.types import Verdict
from realrl.verifier.extract import ExtractionPolicy, extract_answer
from realrl.verifier.latex import normalise
from realrl.verifier.verifiers import quick_math

# Processor seconds of one answer; the slowest by hand takes about 2, on two pages of LaTeX.
MOST_CPU_S = 20.0

# Each touches the file {canary} where it is run as Python.
CODE = (
    "__import__('os').system('touch {canary}')",
    '__import__("os").system("touch {canary}")',
    "open('{canary}','w')",
    "exec(\"open('{canary}','w')\")",
    "().__class__.__base__.__subclasses__()[0]; open('{canary}','w')",
    r"\text{{__import__('os').system('touch {canary}')}}",
    r"1+__import__('os').system('touch {canary}')",
    r"$1/(2)$ [open('{canary}','w') for x in (1,)]",
    r"f'{{open(\"{canary}\",\"w\")}}'",
    "lambda: open('{canary}', 'w')",
    r"\sqrt{{open('{canary}','w')}}",
    r"\begin{{pmatrix}}open('{canary}','w')\end{{pmatrix}}",
    "`touch {canary}`",
    "$(touch {canary})",
    "; touch {canary}",
    r"\input{{|touch {canary}}}",
    r"\write18{{touch {canary}}}",
    "!!python/object/apply:os.system ['touch {canary}']",
    "{{{{ cycler.__init__.__globals__.os.popen('touch {canary}') }}}}",
)

CORPUS = (
    "",
    "\x00",
    "\ud800",
    "\udfff\ud800",
    "\u202e21\u202c",
    "\x1b[31m7\x1b[0m\x9b2J",
    "۱۲",
    "１２",
    "Ⅻ",
    "12\u0301",
    "🧮",
    "1" + " " * 1900 + "x",
    "1" + "\n " * 900 + "x",
    "1" + "$" * 1900 + "x",
    r"1\left \right " * 100 + "x",
    "^" + "~" * 1900,
    "{" * 1000 + "}" * 1000,
    "{" * 2000,
    "}" * 2000,
    "(" * 1000 + "1" + ")" * 1000,
    r"\frac" * 400,
    r"\frac{" * 300 + "1" + "}{2}" * 300,
    r"\sqrt{" * 300 + "2" + "}" * 300,
    r"\boxed{" * 250 + "2" + "}" * 250,
    r"\text{" * 300 + "2" + "}" * 300,
    r"\left(" * 300,
    r"\begin{pmatrix}" * 100,
    r"\begin{pmatrix}" + r"1&2\\" * 300 + r"\end{pmatrix}",
    r"\begin{array}{cc}" + "&" * 1900 + r"\end{array}",
    "10**10**10",
    "10^{10^{10}}",
    "9^9^9^9^9",
    "2^" * 900 + "2",
    "(((10!)!)!)!",
    "10^9!",
    "!" * 1900,
    "-" * 1900 + "1",
    "1+" * 990 + "1",
    "1/" * 990 + "0",
    "1e9999",
    "1e-9999",
    "+".join(["1e9999", "1e-9999"] * 50),
    "9" * 1990,
    "0." + "9" * 1990,
    "9" * 950 + "/" + "7" * 950,
    "*".join(["2^{199999}", "3^{99999}"] * 20),
    "+".join(["1/3^{66000}", "1/7^{66000}"] * 10),
    ",".join(["1/3^{66000}"] * 60),
    ",".join(rf"\tan(2^{{3{i}}})x^x" for i in range(100, 160)),
    ",".join(rf"({i}.5)!x" for i in range(899000, 899060)),
    r"\{" * 9 + ",".join("x" * 60) + r"\}" * 9,
    r"\pm" * 30 + "1",
    ",".join([r"\pm 1"] * 60),
    r"\binom{10^6}{5\cdot10^5}",
    r"\log" * 300 + "2",
    r"\exp(\exp(\exp(\exp(9))))",
    r"\Gamma(10^{9})",
    r"\sum_{k=1}^{10^{12}} \frac{1}{k^k!}",
    r"\prod_{n=1}^{\infty} \left(1+\frac{1}{n^{n^n}}\right)",
    r"\int_0^1 x^{x^{x^{x}}} \sin(e^{x!}) dx",
    r"\lim_{x \to 0} \frac{\sin^{99} x}{x^{99}}",
    r"\det \begin{pmatrix}1&2\\3&4\end{pmatrix}^{10^9}",
    r"x^{1000000}-1",
    "(x+y+z+w)^{99999}",
    "(" + "+".join("abcdefghij") + ")^{9999}",
    "0/0",
    r"\frac{1}{0}",
    "nan",
    "inf",
    r"\infty-\infty",
    "i^{i^{i^{i}}}",
    r"0.\overline{3}",
    r"0.\overline{" + "3" * 1900 + "}",
    "1,2,3" * 300,
    "a or " * 380 + "b",
    "=" * 1900,
    "x=" * 900 + "1",
    "1<" * 900 + "2",
    r"\le" * 600,
    "|" * 1900,
    "⟦" * 1900,
    "⟦a⟧^2*" * 300,
    "⏎" * 1900,
    "((a+)+)+$",
    "%s%s%n",
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "'; DROP TABLE answers; --",
)

_WORDS = r"""
{ } ( ) [ ] \{ \} \left \right \left( \right) \frac \dfrac \binom \sqrt \sqrt[3] \text{ \text{a} \mathrm{cm} \cup \cap
\begin{pmatrix} \end{pmatrix} \begin{array}{cc} & \\ \pm \in \le \ge < > = \approx \equiv \sim , ; and or \text{and} +
- * / ^ ! !! ' | || \lfloor \rfloor \lceil \rceil \sin \cos \tan \cot \log \ln \exp \arctan \sinh _ _{1} x y n e i \pi
\infty \theta 0 1 2 7 10 99 1000 1,000 0.5 .5 1. 1e9 1e9999 1e-9999 99999999999999999999 5000! 999999.5! 1000000!
\binom{999999.5}{499999.3} \exp(\exp(3)) 3^{66000} 2^{199999} \sqrt[7]{2^{199999}} 0.\overline{3} \overline{ % \% °
^\circ $ $$ \( \) \[ \] \boxed{ \fbox{ \boxed #### answer answer: is : . .. ** \quad ~ \, \! \; th st ⟦ ⟧ ⏎ − × ² ½ √
∞ ∪ ≤ cm mph people \sum_{k=1}^{10} \int_0^1 \prod \lim \pmod{7} \angle \emptyset A (A) A. yes true x=1 x<1 1<x<2
f(x)= E9 12_{3} ABC_{12} 10^6 10^{10^{10}} i^i x^x </think> <|im_end|> ```json [] null
"""
_PIECES = (*_WORDS.split(), "final answer", "no solution", " ", "  ", "\n", "\n\n", "\t", "\x00", "\ud800", "\u202e", "\x1b[")


def stream(seed: int) -> Iterator[tuple[str, str]]:
    """Responses and golds without end: pieces at random, few pieces many times over, and boxed, stated and bare answers."""
    rng = random.Random(seed)
    while True:
        answer = _answer(rng, rng.choice((10, 50, 300)))
        gold = rng.choice(("12", r"\frac{1}{2}", "x+1", _answer(rng, rng.choice((5, 30, 300)))))
        kind = rng.random()
        if kind < 0.7:
            response = f"\\boxed{{{answer[:1980]}}}"
        elif kind < 0.85:
            response = answer * rng.choice((1, 10, 100))
        else:
            response = f"{_answer(rng, 300)}answer is {answer}"
        yield response, gold


def _answer(rng: random.Random, size: int) -> str:
    kind = rng.random()
    if kind < 0.4:
        few = rng.sample(_PIECES, rng.randint(1, 5))
        return "".join(rng.choice(few) for _ in range(rng.randint(1, size)))
    if kind < 0.7:
        unit = "".join(rng.choice(_PIECES) for _ in range(rng.randint(1, 6)))
        return rng.choice(_PIECES) + unit * rng.randint(1, max(1, size * 6 // max(len(unit), 1))) + rng.choice(_PIECES)
    return "".join(rng.choice(_PIECES) for _ in range(rng.randint(1, min(size, 60))))


def verify_quickly(response: str, gold: str) -> Verdict:
    """What the trainer decides in its own process, run in a worker: one answer's processor time ends it, so a hang is seen."""
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_CPU_S)
    decided = quick_math(response, (gold,), ExtractionPolicy())
    return decided if isinstance(decided, Verdict) else Verdict("undecided")


def verify_a_long_run(text: str) -> Verdict:
    """Everything that reads a text of any length; quadratic time would be minutes."""
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_CPU_S)
    extract_answer(f"x{text}y")
    extract_answer(f"\\boxed{{{text}}}")
    normalise(f"1{text}y")
    return Verdict("read")
