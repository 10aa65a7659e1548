"""Kinds of answers that were once misjudged: members of each and near misses, both ways; mathematics says what is equal."""

import pytest

from realrl.rewards import grade, verify
from realrl.verifier.extract import last_boxed

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
            (r"15\mbox{ cm}^2", r"\mathbf{15\mbox{ cm}^2}"),
            (r"\{1\pm\sqrt5,-2\}", r"{\{1\pm\sqrt5,-2\}}"),
            (r"1\pm\sqrt5", r"{1\pm\sqrt5}"),
            ("7", "**7**"),
            ("7", "`7`"),
            ("7", r"7\ \checkmark"),
            ("(1,2)", r"\textbf{(1, 2)}"),
            ("2220", r"\text{2,220 m}"),
            ("1/2", r"\text{$\frac12$}"),
            (r"\text{east}", r"\text{east.}"),
            ("A", r"\bm{A}"),
            (r"90^\circ", r"\mathbf{90^\circ}"),
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
    "names in a named answer": (
        [
            ("(1,2)", "x=1,y=2"),
            ("(1,2)", "y=2,x=1"),
            ("(x,y)=(1,2)", "(y,x)=(2,1)"),
            ("(1,2)", "(x,y)=(1,2)"),
            ("(1,2)", "(y,x)=(2,1)"),
            ("x=1, y=2", "(x,y)=(1,2)"),
            ("x=1, y=2", r"y=2 \text{ and } x=1"),
            ("(2,1)", "m=2,b=1"),
            ("(a,b)=(1,2)", "(x,y)=(1,2)"),
            (r"\cos(x)=1/3", r"\cos x=\frac13"),
            ("1/3", r"\cos A=\frac13"),
            ("f(x)=2x", "y=2x"),
            ("AB=5", "BA=5"),
            ("5", "AB=5"),
            ("S=5", r"\text{area}=5"),
            (r"\angle ABC = 30^\circ", r"\angle B = 30^\circ"),
            ("2x", r"\frac{dy}{dx}=2x"),
            ("2x", "f^{-1}(x)=2x"),
            (r"\alpha=30, \beta=60", r"\beta=60, \alpha=30"),
        ],
        [
            ("(1,2)", "y=1,x=2"),
            ("(x,y)=(1,2)", "(y,x)=(1,2)"),
            ("(1,2)", "(y,x)=(1,2)"),
            ("x=1, y=2", "x=2, y=1"),
            (r"\alpha=30, \beta=60", r"\alpha=60, \beta=30"),
            (r"\cos(x)=1/3", r"\sin(x)=1/3"),
            ("3", "x+y=3"),
            ("6", "2x=6"),
            ("AB=5", "CD=5"),
            ("f(2)=5", "f(3)=5"),
            ("f(x)=2x", "g(x)=2x"),
            ("f(x)=2x", "f'(x)=2x"),
            ("y=2x", "y'=2x"),
            (r"\angle A = 30^\circ", r"\angle B = 30^\circ"),
            (r"\text{Tom}=5, \text{Ann}=3", r"\text{Tom}=3, \text{Ann}=5"),
        ],
    ),
    "degrees in trigonometry": (
        [
            (r"\frac12", r"\sin 30^\circ"),
            (r"\frac12", r"\sin(30^{\circ})"),
            (r"\frac12", r"\sin 30 \text{ degrees}"),
            (r"\sin 30^\circ", r"\cos 60^\circ"),
            (r"\sin^2 10^\circ", r"1 - \cos^2 10^\circ"),
            (r"\sin \frac{\pi}{6}", r"\sin 30^\circ"),
            (r"\frac{\sqrt3}{3}", r"\tan 30^\circ"),
            (r"75^\circ", r"30^\circ + 45^\circ"),
            (r"180 - x", r"180^\circ - x"),
            (r"\arctan 2", r"\arctan(2)^\circ"),
        ],
        [
            (r"\sin 30^\circ", r"\sin 30"),
            (r"\frac12", r"\sin 60^\circ"),
            (r"\frac12", r"\sin 30"),
            (r"75^\circ", r"30^\circ + 46^\circ"),
            (r"\cos 1", r"\cos 1^\circ"),
        ],
    ),
    "smaller": (
        [
            ("(1,2)", r"\langle 1,2\rangle"),
            (r"\mathbb{R}", r"(-\infty,\infty)"),
            (r"x \in \mathbb{R}", r"(-\infty,\infty)"),
            (r"\mathbb{R}^+", r"(0,\infty)"),
            ("x \\neq 3", r"(-\infty,3)\cup(3,\infty)"),
            (r"\mathbb{R}\setminus\{3\}", r"x \ne 3"),
            (r"\mathbb{R}\setminus\{3, -1\}", r"(-\infty,-1)\cup(-1,3)\cup(3,\infty)"),
            ("5", "5元"),
            ("无解", "无解。"),
            (r"\emptyset", "无解"),
            (r"\frac{8}{21}", "0.38095238095238093"),
            (r"\frac{8}{21}", "Fraction(8, 21)"),
            ("DNE", r"\text{does not exist}"),
            ("1, 2", "1 或 2"),
            ("1, 2", r"x = 1 \lor x = 2"),
            ("(2516)_8", "2516_{8}"),
            ("1a_{16}", "1A_{16}"),
            ("50", r"50\%"),
            ("0.5", r"50\%"),
        ],
        [
            ("0.5", r"0.5\%"),
            (r"\frac12", r"\frac12\%"),
            (r"\lfloor m/2 \rfloor", r"\lfloor m/3 \rfloor"),
            (r"\lfloor\sqrt{n-1}\rfloor", r"\lfloor\sqrt{n-2}\rfloor"),
            ("(1,2)", r"\langle 2,1\rangle"),
            (r"\mathbb{R}", r"(0,\infty)"),
            (r"\mathbb{Q}", r"\mathbb{R}"),
            ("x \\neq 3", r"(-\infty,2)\cup(2,\infty)"),
            (r"\frac{8}{21}", "0.38095238095248093"),
            ("DNE", "no solution"),
            ("(2516)_8", "2516_{7}"),
            ("5", "6元"),
        ],
    ),
    "families, unions and lists written another way": (
        [
            (r"2k\pi, k\in\mathbb{Z}", r"2\pi n, n \in \mathbb{Z}"),
            (r"x = 3k + 1, k\in\mathbb{Z}", r"x = 1 + 3m \text{ for } m \in \mathbb Z"),
            (r"2k\pi, k\in\mathbb{Z}", r"2k\pi"),
            (r"f(x)=x^2", r"f(x) = x^2 \text{ for all } x"),
            (r"f(x)=x^2", r"f(x) = x^2 \text{ for all } x \in \mathbb{R}"),
            (r"(1,4)", r"(1,3)\cup(2,4)"),
            (r"(-\infty,-1)\cup(1,\infty)", "|x|>1"),
            (r"[-1,3]", r"|x - 1| \le 2"),
            ("p - q", "-q+p"),
            ("x^2 + C", "c + x^2"),
            (r"1\mathbf{i}+2\mathbf{j}", r"\mathbf{i}+2\mathbf{j}"),
            (r"(1,4)", r"(1,3]\cup(3,4)"),
            (r"(-\infty, 0]", r"(-\infty,0) \cup \{0\}"),
            (r"[1,2] \cup \{5\}", r"\{5\} \cup [1, 2]"),
            ("12", r"\text{twelve}"),
            ("101_2", r"101_{\text{two}}"),
            ("5 + 2i", "(5+2j)"),
            ("-3", r"\text{the answer is } -3"),
            (r"\binom{10}{3}", "C(10,3)"),
        ],
        [
            (r"2k\pi, k\in\mathbb{Z}", r"3\pi n, n \in \mathbb{Z}"),
            (r"x \in \mathbb{Z}", r"x \in \mathbb{Q}"),
            (r"f(x)=x^2", r"f(x) = x^2 \text{ for all } x > 0"),
            (r"(1,4)", r"(1,3)\cup(3,4)"),
            (r"(-\infty,-1)\cup(1,\infty)", "|x|<1"),
            (r"[-1,3]", r"|x - 1| < 2"),
            (r"[-1,3]", r"|x + 1| \le 2"),
            ("p - q", "q - p"),
            ("x^2 + C", "x^3 + c"),
            (r"\mathbf{i}+2\mathbf{j}", r"2\mathbf{i}+\mathbf{j}"),
            (r"(1,4)", r"(1,3)\cup(2,4]"),
            (r"(-\infty, 0]", r"(-\infty,0) \cup \{1\}"),
            (r"1, 2, \ldots, n", r"1, 3, 5, \ldots, 2n-1"),
            (r"60^\circ", r"60\%"),
            ("-3", r"\text{dogs} - 3"),
            ("-3", r"\text{the answer is } 3"),
            ("12", r"\text{eleven}"),
        ],
    ),
    "two units": (
        [
            (r"1\text{ km}", r"1000\text{ m}"),
            ("1 km", "1000 m"),
            (r"2\text{ hours}", r"120\text{ minutes}"),
            (r"2\text{ hours }30\text{ minutes}", r"150\text{ minutes}"),
            (r"2\text{ hours }30\text{ minutes}", r"2.5\text{ hours}"),
            (r"1\text{ m}^2", r"10000\text{ cm}^2"),
            (r"36\text{ km/h}", r"10\text{ m/s}"),
            (r"36\ \frac{\text{km}}{\text{h}}", r"36\text{ km/h}"),
            (r"60\text{ mph}", r"60\text{ miles per hour}"),
            (r"5\text{ sq ft}", r"5\text{ square feet}"),
            (r"3\text{ dollars}", r"300\text{ cents}"),
            (r"180^\circ", r"\pi\text{ radians}"),
            (r"5\text{ kg}", "5"),
            (r"5\text{ kg}", r"5\text{ cookies}"),
            (r"8\text{ ounces}", r"8\text{ fluid ounces}"),
        ],
        [
            (r"5\text{ hours}", r"5\text{ minutes}"),
            ("5 hours", "5 minutes"),
            (r"5\text{ cm}^2", r"5\text{ cm}^3"),
            (r"5\text{ feet}", r"5\text{ inches}"),
            (r"30^\circ", r"30\text{ radians}"),
            (r"30\text{ degrees}", r"30\text{ radians}"),
            (r"20^\circ\text{C}", r"20^\circ\text{F}"),
            (r"1\text{ km}", r"1001\text{ m}"),
            (r"5\text{ dollars}", r"5\text{ cents}"),
            (r"5\text{ m}", r"5\text{ s}"),
            (r"2\text{ hours }30\text{ minutes}", r"160\text{ minutes}"),
            (r"60\text{ mph}", r"60\text{ km/h}"),
        ],
    ),
    "units and currencies in plain words": (
        [
            ("18", "18 eggs"),
            ("18", "18 km/h"),
            ("18", "18 m"),
            ("18", r"18\,g"),
            ("18 egg", "18 eggs"),
            ("18 apples", "18 apple"),
            ("18", "€18"),
            ("18", "£ 18"),
            ("1/2", "1/2 cup"),
            ("3.5", r"3\frac12 cups"),
            ("18 eggs", r"18\text{ eggs}"),
            ("18", "x = 18 eggs"),
            ("5000000", "5 million"),
            ("5000000", r"5\text{ million dollars}"),
            ("24", "2 dozen eggs"),
            ("18 abc", "18 c b a"),
        ],
        [
            ("18", "19 eggs"),
            ("18 eggs", "17"),
            ("18 abc", "18 abd"),
            ("5", "5 million"),
            ("18", "18 or 20"),
            ("18", "18x"),
            ("1/2", "1/3 cup"),
            ("18", "18m"),
            ("18", "18 x"),
            ("18 eggs", "19 egg"),
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


@pytest.mark.parametrize("gold", ["", "???", "<image>", " ... "])
def test_a_gold_that_is_no_answer_is_an_error(gold):
    assert grade("\\boxed{5}", gold).status == "grader_error"


def test_boxes_in_a_list_are_one_answer():
    assert last_boxed("1. $\\boxed{2}$\n2. $\\boxed{3}$") == "2, 3"
    assert last_boxed("(a) \\boxed{2}.\n(b) \\boxed{3}.") == "2, 3"
    assert last_boxed("First \\boxed{2}.\nThen we see \\boxed{3}.") == "3"


@pytest.mark.parametrize(
    "form", [r"{}\text{{ eggs}}", "{} eggs", "{} dollars", "x={}", r"\${}", "€{}", "{}.00", r"\textbf{{{}}}", "{} km/h"]
)
def test_an_integer_may_have_a_unit_or_a_name(form):
    for text in ("2220", "2,220", r"2\,220"):
        assert grade(rf"\boxed{{{form.format(text)}}}", "2220", type="exact_integer").status == "correct"
    assert grade(rf"\boxed{{{form.format(2221)}}}", "2220", type="exact_integer").status == "wrong"


@pytest.mark.parametrize(
    "text", ["2220 or 2221", "not 2220", "x+y=2220", "2220x", r"2220\text{ hours }30\text{ minutes}", "2, 220"]
)
def test_what_is_more_than_an_integer_is_wrong(text):
    assert grade(rf"\boxed{{{text}}}", "2220", type="exact_integer").status == "wrong"
