"""What holds of any answer: it equals its harmless rewritings, equality has no order, and another value is never accepted."""

from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from realrl.verifier.equivalence import compare

REWRITINGS = [
    r"\boldsymbol{{{}}}",
    r"\textcolor{{red}}{{{}}}",
    r"\displaystyle {}",
    r"\left({}\right)",
    "{{{}}}",
    "**{}**",
    "${}$",
    r"\({}\)",
    "x = {}",
    r"\text{{the answer is }}{}",
    r"{}\text{{ eggs}}",
    "{}.",
    r"\,{}\ ",
    r"{} \checkmark",
]


def latex(value):
    if value.denominator == 1:
        return str(value.numerator)
    return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def mixed(value):
    whole, rest = divmod(abs(value.numerator), value.denominator)
    return f"{'-' if value < 0 else ''}{whole}\\frac{{{rest}}}{{{value.denominator}}}"


fractions = st.builds(Fraction, st.integers(-99999, 99999), st.integers(1, 400))
# An answer, and a change of its value: rational, with a root, with a letter, an interval, a pair.
shapes = st.sampled_from(["{}", r"{}\sqrt{{3}}", r"\sqrt{{2}}+{}", "{}\\pi", "x^2+{}", r"\left[0,{}\right)", "({},7)", "7,{}"])


@given(fractions, shapes, st.sampled_from(REWRITINGS))
@settings(deadline=None)
def test_a_harmless_rewriting_is_the_same_answer_both_ways(value, shape, rewriting):
    plain = shape.format(latex(value))
    assume(not (("x =" in rewriting or "(" in rewriting or "eggs" in rewriting) and shape != "{}"))
    written = rewriting.format(plain)
    assert compare(written, plain)[0] is True and compare(plain, written)[0] is True


@given(fractions.filter(lambda value: value.denominator > 1 and abs(value) > 1))
@settings(deadline=None)
def test_a_mixed_number_is_its_fraction_and_not_that_of_the_other_sign(value):
    assert compare(mixed(value), latex(value))[0] is True and compare(latex(value), mixed(value))[0] is True
    assert compare(mixed(-value), latex(value))[0] is False
    # The whole part's sign is that of all: -2 1/4 is not -2 + 1/4.
    wrong = value + 2 * (abs(value) - abs(value).__floor__()) if value < 0 else value
    assert wrong == value or compare(mixed(value), latex(wrong))[0] is False


@given(
    st.integers(1000, 10**12), st.sampled_from([",", "{,}", r"\,", r"\ ", ",\\!"]), st.sampled_from(["{}", "x = {}", r"{}\pi"])
)
@settings(deadline=None)
def test_thousands_groups_are_one_number(value, mark, shape):
    grouped = shape.format(f"{value:,}".replace(",", mark))
    assert compare(grouped, shape.format(value))[0] is True and compare(grouped, shape.format(value + 1))[0] is False


@given(fractions, fractions, shapes, st.sampled_from(REWRITINGS))
@settings(deadline=None)
def test_another_value_is_never_accepted(value, other, shape, rewriting):
    assume(value != other)
    assume(not (("x =" in rewriting or "(" in rewriting or "eggs" in rewriting) and shape != "{}"))
    # An empty interval, or one that begins after it ends, is written by nobody.
    assert compare(rewriting.format(shape.format(latex(other))), shape.format(latex(value)))[0] is False


@pytest.mark.parametrize(("small", "large", "factor"), [("minutes", "hours", 60), ("m", "km", 1000), ("inches", "feet", 12)])
@given(value=fractions)
@settings(deadline=None)
def test_a_unit_is_converted_and_never_dropped(small, large, factor, value):
    assume(value > 0)
    own, theirs = rf"{latex(value)}\text{{ {large}}}", rf"{latex(value * factor)}\text{{ {small}}}"
    assert compare(theirs, own)[0] is True and compare(own, theirs)[0] is True
    assert compare(rf"{latex(value)}\text{{ {small}}}", own)[0] is False
