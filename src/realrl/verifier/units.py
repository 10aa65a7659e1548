"""Recognise and convert units with the library pint, which is imported only when two answers have different units."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

# Only these units take a metric prefix; pint alone would read "cat" as a hundredth of a technical atmosphere.
_METRIC = set(
    "meter gram liter second watt joule volt ampere hertz pascal newton ohm calorie mole bit byte electron_volt bar".split()  # noqa: SIM905
)
_PREFIXES = {"kilo", "centi", "milli", "micro", "nano", "mega", "giga", "deci", "hecto", "deca"}
# Words that are used for more than one unit; the units of one line count as equal.
_LOOSE = (
    {"ounce", "fluid_ounce"},
    {"pound", "force_pound"},
    {"ton", "metric_ton", "long_ton"},
    {"degree_Celsius", "delta_degree_Celsius"},
)
_NAMES = {
    "sec": "second", "secs": "second",
    "hr": "hour", "hrs": "hour", "mins": "minute", "yrs": "year", "yr": "year", "lbs": "pound",
    "h": "hour", "C": "degree_Celsius", "F": "degree_Fahrenheit", "L": "liter", "kph": "km/hour", "in": "inch", "°": "degree",
    "s": "second", "min": "minute",
}  # fmt: skip
# Unit names that usually mean something else, such as points in a game.
_NO_UNITS = {"point", "points", "percent", "count", "counts", "hand", "hands"}
_LONGEST = 60


@lru_cache(maxsize=1)
def _registry() -> Any:
    import pint

    registry: Any = pint.UnitRegistry(non_int_type=Fraction)  # pyright: ignore[reportArgumentType]
    registry.define("dollar = [currency]")
    registry.define("cent = dollar / 100")
    return registry


@lru_cache(maxsize=1024)
def _unit(text: str) -> Any | None:
    """The unit for text such as `cm^2`, `square inches` or `miles per hour`; None if one of its words is not a unit."""
    text = re.sub(r"[⟦⟧{}\\~]", " ", text).strip(" .*/")
    if not text or len(text) > _LONGEST:
        return None
    text = re.sub(r"\bper\b", "/", text)
    text = re.sub(r"\b(square|sq|cubic|cu)\b\.?\s*([a-zA-Z]+)", lambda m: f"{m[2]}^{2 if m[1][0] == 's' else 3}", text)
    text = re.sub(r"\b(?:fluid|fl)\.? (?:ounces?|oz)\b", "fluid_ounce", re.sub(r"\s+and$", "", text))
    # A power belongs to the unit before it, even after a space. Units next to each other form a product.
    text = re.sub(r"\s*([\^/*])\s*", r"\1", text)
    pieces = re.fullmatch(r"[a-zA-Z°_]+(?:\^-?\d)?(?:[ .*/]+[a-zA-Z°_]+(?:\^-?\d)?)*", text)
    if pieces is None:
        return None
    registry = _registry()
    result = registry.dimensionless
    for sign, name, power in re.findall(r"(^|[ .*/]+)([a-zA-Z°_]+)(?:\^(-?\d))?", text):
        factor = _one(registry, name)
        if factor is None:
            return None
        factor = factor ** int(power or 1)
        result = result / factor if "/" in sign else result * factor
    return result


def _one(registry: Any, name: str) -> Any | None:
    for word in dict.fromkeys((name, name.lower(), name.lower().removesuffix("s"))):
        if word in _NO_UNITS:
            return None
        if word in _NAMES:
            return registry.parse_units(_NAMES[word])
        for prefix, unit, _ in registry.parse_unit_name(word):
            if not prefix or (prefix in _PREFIXES and unit in _METRIC):
                return registry.parse_units(prefix + unit)
    return None


def conversion(unit: str, other: str) -> Fraction | None:
    """The factor that converts a number in `unit` to `other`; None if a unit is unknown, 0 if there is no such factor."""
    a, b = _unit(unit), _unit(other)
    if a is None or b is None:
        return None
    one = _registry().Quantity(Fraction(1), a)
    names = [{name for name, _ in quantity.unit_items()} for quantity in (one, _registry().Quantity(Fraction(1), b))]
    if a == b or any(all(name <= words for name in names) for words in _LOOSE):
        return Fraction(1)
    # Degrees Celsius and Fahrenheit have different zero points.
    if a.dimensionality != b.dimensionality or any(name.startswith("degree_") for found in names for name in found):
        return Fraction(0)
    return Fraction(one.to(b).magnitude)
