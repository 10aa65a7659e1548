"""Pairs of final answers; what is equal is known from mathematics, not from any grader."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realrl.rewards import grade, verify
from realrl.verifier.equivalence import compare, half_unit

EQUAL = [
    (r"0.09 \text{ OR } \frac{9}{100}", "0.09"),
    ("1000,99", "1000.99"),
    ("0,111", "0.111"),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2, 1+\sqrt{5}, 1-\sqrt{5}\}"),
    (r"0, \pm 1, \pm 2", r"\{-2,-1,0,1,2\}"),
    (r"\{x \mid -1 < x < 1\}", "(-1,1)"),
    (r"\{x | x < -1 \text{ or } x \ge 3\}", r"(-\infty,-1) \cup [3,\infty)"),
    (r"4 < m \leq 8 \text{ or } 10 \leq m < 12", r"(4, 8] \cup [10, 12)"),
    (r"a \leqslant -2 \text{ or } a = 1", r"(-\infty, -2] \cup \{1\}"),
    (r"3 < \lambda \leq 4", "(3,4]"),
    (r"30^\circ", r"\frac{\pi}{6}"),
    (r"C = \frac{2\pi}{3}", r"120^\circ"),
    (r"x = k\pi", r"n\pi"),
    (r"12^{\mathrm{th}}", "12"),
    ("f(z)=2z+1", "f(x)=2x+1"),
    (r"a = -2, \ b = -2", "-2,-2"),
    (r"\dfrac{\dbinom{d}{k} (k - 1)!}{2}", r"\frac{d !}{2 k(d-k) !}"),
    (r"\tan 1 > \sin 1 > \cos 1", r"\cos 1 < \sin 1 < \tan 1"),
    ("(1,3)", "{1,3}"),
    ("e^{16}-1", r"-1+\exp(16)"),
    (r"\pi/2", "pi/2"),
    (r"33 \pmod{100}", "33"),
    (r"x \equiv 33 \pmod{100}", "33"),
    ("2^{10}", "1024"),
    ("10^{10}", "10000000000"),
    (r"x\in[-2,7]", "[-2,7]"),
    (r"-2 \le x \le 7", "[-2,7]"),
    ("x>3", r"(3,\infty)"),
    ("-x > -1", "x < 1"),
    ("025", "25"),
    (r"\$32{,}348", "32348"),
    (r"32,\!348", "32348"),
    ("8.7e8", r"8.7\times10^{8}"),
    ("1/2", "0.5"),
    (r"918\frac{1}{2}", "918.5"),
    ("3 1/2", "3.5"),
    (r"0.\overline{36}", "4/11"),
    ("x^2+2x+1", "x^2 + 2*x - (-1)"),
    ("(r+5)(r+5)", "(r+5)^2"),
    ("y = x^2+2x+1", "2x+ 1+x^2"),
    ("2x-y=0", "y=2x"),
    ("4x+6y=8", "2x+3y-4=0"),
    (r"\text{(C)}", "C"),
    (r"\textbf{A}", "A"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\operatorname{arccot}(1)", r"\frac{\pi}{4}"),
    (r"\mathrm{sin}\left(\frac{\pi}{2}\right)", "1"),
    (r"\text{ln} 2 \text{ sec}", r"\log 2"),
    (r"17\text{ any text}", "17"),
    (r"5\text{ cm}^2", "5"),
    ("120 degrees", r"120^\circ"),
    (r"10\%", "10"),
    (r"10\%", "0.1"),
    ("4210_{5}", "4210_5"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{\sqrt{3}}{3} \approx 0.577"),
    (r"\begin{pmatrix}1&0\\0&1\end{pmatrix}", r"\begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix}"),
    (r"3 \pm \sqrt{2}", r"3-\sqrt2, 3+\sqrt2"),
    (r"\{1,2\}", "2,1"),
    ("x=1,y=2", "(1,2)"),
    ("p=5,q=2;p=7,q=2", "(5,2),(7,2)"),
    (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty) \cup (-\infty, 2)"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"),
    (r"\log_2 8", "3"),
    (r"\sin^2 x+\cos^2 x", "1"),
    (r"\binom{5}{2}", "10"),
    (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"\sqrt[3]{8}", "2"),
    ("np.arcsin(10/13)", r"\arcsin{\frac{10}{13}}"),
    ("x != 3", r"x \neq 3"),
    ("no solution", r"\emptyset"),
]
DIFFERENT = [
    ("1 or 2", "1"),
    ("1,234", "1.234"),
    ("1,22", "1.23"),
    (r"\{x \mid -1 < x < 1\}", "[-1,1]"),
    (r"4 < m \leq 8 \text{ or } 10 \leq m < 12", r"(4, 8] \cup (10, 12)"),
    (r"30^\circ", r"\frac{\pi}{3}"),
    ("30", r"\frac{\pi}{6}"),
    (r"x = 2k\pi", r"n\pi"),
    ("f(z)=2z+1", "f(x)=2x+2"),
    ("f(z)=2z+x", "f(x)=2x+z"),
    (r"\tan 1 > \sin 1 > \cos 1", r"\tan 1 > \cos 1 > \sin 1"),
    ("b < a < d", "b a d"),
    (r"\{1,3\}", "1"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    ("1/2^{99}", "1/2^{98}"),
    ("4", r"4\sqrt{2}"),
    (r"1-\frac1e", r"1+\frac1e"),
    ("3x-y+13=0", "3x+4y+14=0"),
    ("100.005", "100"),
    (r"\frac{1}{23}", r"\frac{12}{3}"),
    ("3 1/2", "31/2"),
    ("1 2", "12"),
    ("12", "1,2"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(2,1)"),
    ("1,2,3", "1,2"),
    ("x>3", r"x\ge 3"),
    ("x>5", "x<5"),
    ("x < 1", "x > -1"),
    ("y=2x", "y=3x"),
    ("0.5", "0.52"),
    (r"\frac{\pi}{4}", "0.795"),
    (r"\text{(B)}", "(C)"),
    ("odd", r"\text{oddd}"),
    ("AB", "BA"),
    ("5 cm", r"5\text{ mm}"),
    ("-5", "5"),
    (r"\pm 2021", "2021"),
    ("12:00", "1:00"),
    (r"\infty", r"-\infty"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    (r"\sqrt{67},-\sqrt{85}", r"\sqrt{67}"),
    ("10^{10^{10}}", "5"),
    ("31_5", "31_6"),
]


def boxed(text: str) -> str:
    return f"\\boxed{{{text}}}"


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_equal_both_ways(a, b):
    assert verify(boxed(a), b) and verify(boxed(b), a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_both_ways(a, b):
    assert not verify(boxed(a), b) and not verify(boxed(b), a)


def test_only_a_decimal_gold_may_be_a_rounding():
    assert verify(boxed(r"\frac{\pi}{4}"), "0.785") and not verify(boxed("0.785"), r"\frac{\pi}{4}")
    assert verify(boxed("1/3"), "0.333") and not verify(boxed("0.34"), "0.333")
    assert not verify(boxed("1/3"), "0.33")  # two digits may as well be exact
    assert verify(boxed("8.68e8"), "8.7e8") and not verify(boxed("8.6e8"), "8.7e8")
    assert [half_unit(gold) for gold in ("12", "0.25", "0.250", "8.7e8")] == [None, None, Fraction(1, 2000), 5_000_000]


@pytest.mark.parametrize(
    ("answer", "gold", "stage"),
    [("x", "x", "text"), ("1/2", "0.5", "exact"), ("(1,2)", "(1, 2.0)", "structure"), (r"2\sqrt2", r"\sqrt8", "value")],
)
def test_the_verdict_names_its_stage(answer, gold, stage):
    assert grade(boxed(answer), gold).stage == stage


def test_what_the_parser_cannot_read_is_left_to_computer_algebra():
    verdict = grade(boxed(r"\sum_{k=1}^{4} k"), "10")
    assert (verdict.status, verdict.stage) == ("correct", "symbolic")
    assert grade(boxed(r"\sum_{k=1}^{4} k"), "11").status == "wrong"


@settings(max_examples=300, deadline=None)
@given(st.integers(-999, 999), st.integers(1, 99), st.integers(-999, 999), st.integers(1, 99))
def test_fractions_are_equal_exactly_where_cross_products_are(a, b, c, d):
    equal, _ = compare(rf"\frac{{{a}}}{{{b}}}", f"{c}/{d}")
    assert equal is (a * d == c * b)


@settings(max_examples=500, deadline=None)
@given(
    st.text(alphabet="0123456789xyeπ.,;:+-*/^_=<>!|()[]{}\\ %°$⟦⟧&⏎'abfracsqrtimnod\x00\ud800", max_size=60),
    st.text(max_size=20),
)
def test_any_text_gets_a_sure_or_unsure_answer(a, b):
    for pair in ((a, b), (b, a), (a, a)):
        assert compare(*pair)[0] in (True, False, None)


@pytest.mark.parametrize("part", ["\\frac", "\\sqrt", "(", "-", "1+", "2^", "!", "|", "\\sin", "\\{", "1,("])
def test_deep_and_long_formulas_are_not_read(part):
    text = (part * 1000)[:1900]
    assert compare(text, "5")[0] is not True and compare("5", text)[0] is not True


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        (r"\sqrt{2}-1", r"41.4\%", True),  # 41.42 %, rounded to three digits
        (r"\sqrt{2}-1", r"41.5\%", False),
        ("1/15", r"6.67\%", True),
        (r"6.67\%", "1/15", False),  # an answer that is rounded is not the exact gold
    ],
)
def test_a_percentage_may_be_a_rounding(answer, gold, right):
    assert verify(boxed(answer), gold) is right
