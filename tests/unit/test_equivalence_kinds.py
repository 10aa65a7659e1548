"""Kinds of answers that were once misjudged: members of each and near misses, both ways; mathematics says what is equal."""

import pytest

from realrl.rewards import verify

# kind: (pairs that are the same answer, pairs that are not)
KINDS = {
    "mixed numbers": (
        [
            ("-9/4", r"-2\frac{1}{4}"),
            ("-9/4", r"-2\frac14"),
            ("-3.5", "-3 1/2"),
            ("-3.5", "−3½"),
            ("-3.5", r"- 3 \dfrac{1}{2}"),
            (r"(-\frac94, 1)", r"(-2\frac{1}{4}, 1)"),
            (r"[-\frac94, 0)", r"[-2\frac{1}{4}, 0)"),
            (r"-\frac94", r"x = -2\frac{1}{4}"),
            (r"-\frac{9}{4}\pi", r"-2\frac{1}{4}\pi"),
            (r"-\frac94\text{ m}", r"-2\frac{1}{4}\text{ m}"),
            ("5/4", r"1\ 1/4"),
            ("5/4", r"1\,\frac{1}{4}"),
            ("9/4", "2¼"),
            ("7/8", "⅞"),
            ("1/2", "1⁄2"),
            ("10", r"4 \cdot 2\frac{1}{2}"),
            ("2", r"5 \div 2\frac{1}{2}"),
            ("1", r"2\left(\frac{1}{2}\right)"),
            ("2", r"2^3\frac{1}{4}"),
            ("1.5", r"3 - 1\frac12"),
        ],
        [
            ("-1/2", r"-2\frac{1}{4}"),
            ("-7/4", r"-2\frac{1}{4}"),
            ("-3/2", "-3 1/2"),
            ("9/4", r"-2\frac{1}{4}"),
            (r"(-\frac12, 1)", r"(-2\frac{1}{4}, 1)"),
            ("5", r"4 \cdot 2\frac{1}{2} \cdot 1"),
            ("2.5", r"2\left(\frac{1}{2}\right)"),
            ("2/4", "2¼"),
        ],
    ),
    "thousands groups": (
        [
            ("2220", "2,220 dollars"),
            ("2220", r"2,220\text{ m}"),
            ("2220", "x = 2,220"),
            ("2220", "{2,220}"),
            ("2220", r"\approx 2,220"),
            (r"2220\pi", r"2,220\pi"),
            (r"\frac{1}{1000}", r"\frac{1}{1,000}"),
            (r"\sqrt{1234}", r"\sqrt{1,234}"),
            ("2220", r"2\,220"),
            ("2220", r"2\ 220"),
            ("2220", "2~220"),
            ("-1234567.5", "-1,234,567.5"),
            ("1234, 5678", "1,234, 5,678"),
            ("x > 1000", "x > 1,000"),
            ("(1234, 5)", "(1{,}234, 5)"),
            ("1200 + 3400x", "1,200 + 3,400x"),
            (r"1200\%", r"1,200\%"),
        ],
        [
            (r"1,234\pi", r"234\pi, 1"),
            ("(1, 234)", "1234"),
            (r"\{1, 234\}", "1234"),
            ("2,22", "222 m"),
            ("1,2,345", "12345"),
            ("x = 2,220", "2"),
            ("2220", "2,221 dollars"),
            ("0,123", "123"),
        ],
    ),
    "odd roots of negatives": (
        [
            ("-2", r"\sqrt[3]{-8}"),
            ("-2", "(-8)^{1/3}"),
            ("4", r"(-8)^{\frac23}"),
            (r"-\sqrt[3]{2}", r"\sqrt[3]{-2}"),
            (r"-\sqrt[5]{x}", r"\sqrt[5]{-x}"),
            ("-1/2", "(-8)^{-1/3}"),
            (r"2i", r"\sqrt{-4}"),
        ],
        [("2", r"\sqrt[3]{-8}"), (r"1+\sqrt{3}i", "(-8)^{1/3}"), ("-2", r"\sqrt[4]{-16}"), ("-4", "(-8)^{2/3}")],
    ),
    "words that change the meaning": (
        [
            (r"\text{at most }5", r"\text{no more than }5"),
            (r"\text{at least }5", "5"),
            ("-5", r"\text{negative }5"),
            (r"2\text{ hours }30\text{ minutes}", r"2\text{ hours } 30 \text{ min}"),
            (r"n \equiv 1 \pmod 4", r"n \equiv 1 \pmod{4}"),
            (r"n \equiv 1 \pmod 4", "1 (mod 4)"),
            (r"n \equiv 1 \pmod 4", "1"),
            (r"1 \pmod 4, 2 \pmod 3", r"2 \pmod 3, 1 \pmod 4"),
            (r"2\text{ AM}", r"2\text{ a.m.}"),
            (r"\text{the answer is }5", r"\text{total: }5"),
            (r"\text{increasing on }(0,1)", r"\text{increasing on } (0, 1)"),
        ],
        [
            (r"\text{at most }5", r"\text{at least }5"),
            ("at most 5", "at least 5"),
            ("5", r"\text{not }5"),
            (r"\text{increasing on }(0,1)", r"\text{decreasing on }(0,1)"),
            (r"\text{increasing on }(0,1)", r"\text{concave on }(0,1)"),
            (
                r"\text{increasing on }(0,1), \text{decreasing on }(1,2)",
                r"\text{decreasing on }(0,1), \text{increasing on }(1,2)",
            ),
            (r"2\text{ AM}", r"2\text{ PM}"),
            (r"5\text{ km north}", r"5\text{ km south}"),
            (r"n \equiv 1 \pmod 4", r"n \equiv 1 \pmod 3"),
            (r"1 \pmod 4, 2 \pmod 3", r"1 \pmod 3, 2 \pmod 4"),
            (r"2\text{ hours }30\text{ minutes}", r"2\text{ hours }40\text{ minutes}"),
            (r"2\text{ hours }30\text{ minutes}", r"3\text{ hours }30\text{ minutes}"),
            (r"2\text{ hours }30\text{ minutes}", "30"),
            ("5", r"\text{negative }5"),
        ],
    ),
    "faces and stray marks": (
        [
            ("7", r"\boldsymbol{7}"),
            ("1/2", r"\bm{\frac12}"),
            ("12", r"\mathsf{12}"),
            ("7", r"\texttt{7}"),
            ("7", r"\underline{7}"),
            ("7", r"\color{red}7"),
            (r"7\pi", r"\color{red}{7\pi}"),
            (r"\frac{1}{7}", r"\frac{1}{\textcolor{red}{7}}"),
            ("7", "{}7"),
            ("7", "**7**"),
            ("7", "`7`"),
            ("7", r"7\ \checkmark"),
            ("(1,2)", r"\textbf{(1, 2)}"),
            ("2220", r"\text{2,220 m}"),
            ("1/2", r"\text{$\frac12$}"),
            (r"\text{east}", r"\text{east.}"),
            ("A", r"\bm{A}"),
        ],
        [
            ("8", r"\boldsymbol{7}"),
            ("2,220", r"\text{2,221 m}"),
            ("(1,2)", r"\textbf{(2, 1)}"),
            (r"\frac{1}{7}", r"\frac{1}{\textcolor{red}{8}}"),
            (r"\text{east}", r"\text{west.}"),
            ("49", "7**2**"),
        ],
    ),
}
RIGHT = [(kind, *pair) for kind, (right, _) in KINDS.items() for pair in right]
WRONG = [(kind, *pair) for kind, (_, wrong) in KINDS.items() for pair in wrong]


@pytest.mark.parametrize(("kind", "a", "b"), RIGHT)
def test_the_same_answer_is_right_both_ways(kind, a, b):
    assert verify(f"\\boxed{{{b}}}", a) and verify(f"\\boxed{{{a}}}", b)


@pytest.mark.parametrize(("kind", "a", "b"), WRONG)
def test_a_near_miss_is_wrong_both_ways(kind, a, b):
    assert not verify(f"\\boxed{{{b}}}", a) and not verify(f"\\boxed{{{a}}}", b)
