"""Find duplicates within a data set, and training problems that are also evaluation problems."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from realrl.config import DataSection
from realrl.data.datasets import LoadedProblems, load_problems
from realrl.data.tasks import TASKS
from realrl.errors import ConfigError, DataError
from realrl.types import Problem
from realrl.verifier.equivalence import compare

# Words in an n-gram, the minimum number of n-grams for a comparison, and the share of them that counts as overlap.
_GRAM = 8
_FEWEST_GRAMS = 4
CONTAINMENT = 0.8

# Without \mathcal, \mathbb and similar commands: 𝓡 and R are different names.
_STYLE = re.compile(
    r"\\(?:bf|bigg|bigl|bigr|boldsymbol|cal|displaystyle|ensuremath|hspace|it|left|mathbf|mathit|mathrm|mathsf|mbox|nolimits|"
    r"operatorname|qquad|quad|right|rm|scriptstyle|text|textbf|textit|textrm|textstyle|underline)(?![a-z])"
)
_FIGURE = re.compile(r"\[asy\](?:(?!\[asy\]).)*?\[/asy\]", re.DOTALL)
_WORD = re.compile(r"[a-z]+|\d+")


def normal_form(problem: str) -> str:
    """The text without case, spaces, `$`, braces, style commands and punctuation; operators, digits and figures remain."""
    text = re.sub(r"\\(le|ge)(?![a-z])", r"\\\1q", re.sub(r"\\[dtc]frac", r"\\frac", _fold(problem)))
    text = _STYLE.sub("", text)
    text = re.sub(r"\\[,;:!\\ ()\[\]]|[\s~${}]", "", text)
    return re.sub(r"(?<!\d)\.|\.(?!\d)|[,:;?!]", "", text)


def grams(problem: str) -> set[tuple[str, ...]]:
    """All 8-grams of words (runs of letters or of digits) of the text without figures and style commands."""
    text = re.sub(r"\\[dt]frac", r"\\frac", _FIGURE.sub(" ", _fold(problem)))
    words = _WORD.findall(_STYLE.sub(" ", text))
    return {tuple(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1)}


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def same_gold(a: Problem, b: Problem) -> bool:
    """Whether the first golds of two problems are equal for the verifier, without computer algebra."""
    if a.answer == b.answer:
        return True
    try:
        return compare(a.answer, b.answer)[0] is True
    except (RecursionError, ValueError, ArithmeticError):
        return False


@dataclass(frozen=True, slots=True)
class Duplicates:
    """The problems to keep, in order, and the number of rows removed for each reason.

    `repeated`: rows equal to an earlier row. `conflicting`: all rows of a problem with different golds.
    """

    kept: list[Problem]
    repeated: int
    conflicting: int
    conflicts: list[list[Problem]]


def deduplicate(problems: Sequence[Problem]) -> Duplicates:
    """Keep the first of equal problems; if their golds differ, remove all of them, since at least one gold is wrong."""
    groups: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        groups[normal_form(problem.problem)].append(problem)
    conflicts = [group for group in groups.values() if not all(same_gold(group[0], other) for other in group[1:])]
    conflicting = {id(problem) for group in conflicts for problem in group}
    kept = [group[0] for group in groups.values() if id(group[0]) not in conflicting]
    return Duplicates(kept, len(problems) - len(kept) - len(conflicting), len(conflicting), conflicts)


@dataclass(frozen=True, slots=True)
class Overlap:
    """A training problem found in an evaluation set, `exact` by its normal form or near by its share of common n-grams."""

    train: Problem
    evaluated: Problem
    exact: bool
    containment: float


def find_overlap(train: Sequence[Problem], evaluated: Sequence[Problem], threshold: float = CONTAINMENT) -> list[Overlap]:
    """All pairs with equal normal form, or whose training problem has at least `threshold` of the evaluated problem's 8-grams.

    Evaluated problems with fewer than 4 n-grams are compared only by normal form.
    """
    by_form: dict[str, list[int]] = defaultdict(list)
    by_gram: dict[tuple[str, ...], list[int]] = defaultdict(list)
    sizes = []
    for index, problem in enumerate(evaluated):
        by_form[normal_form(problem.problem)].append(index)
        found = grams(problem.problem)
        sizes.append(len(found))
        if len(found) >= _FEWEST_GRAMS:
            for gram in found:
                by_gram[gram].append(index)
    pairs = []
    for problem in train:
        exact = by_form.get(normal_form(problem.problem), [])
        pairs += [Overlap(problem, evaluated[index], True, 1.0) for index in exact]
        shared = Counter(index for gram in grams(problem.problem) for index in by_gram.get(gram, ()))
        pairs += [
            Overlap(problem, evaluated[index], False, count / sizes[index])
            for index, count in shared.items()
            if index not in exact and count / sizes[index] >= threshold
        ]
    return pairs


@dataclass(frozen=True, slots=True)
class OverlapCounts:
    """Counts of distinct evaluated problems (exact, all, with an equal gold) and of the training rows that contain them."""

    exact: int
    found: int
    same_answer: int
    rows: int

    def __str__(self) -> str:
        return f"{self.found} problems, {self.exact} exact, {self.same_answer} with the same answer, in {self.rows} rows"


def count_overlap(pairs: Sequence[Overlap]) -> OverlapCounts:
    """Count the pairs from `find_overlap`."""
    return OverlapCounts(
        exact=len({pair.evaluated.id for pair in pairs if pair.exact}),
        found=len({pair.evaluated.id for pair in pairs}),
        same_answer=len({pair.evaluated.id for pair in pairs if same_gold(pair.train, pair.evaluated)}),
        rows=len({pair.train.id for pair in pairs}),
    )


def check_held_out(data: DataSection, train: Sequence[Problem], held_out: Mapping[str, Sequence[Problem]]) -> list[str]:
    """A warning for each held-out set that shares problems with the training set, by normal form.

    Raises DataError if training contains a whole held-out set: its accuracy would say nothing about other problems.
    """
    forms = {normal_form(problem.problem) for problem in train}
    notes = []
    for name, problems in held_out.items():
        shared = sum(normal_form(problem.problem) in forms for problem in problems)
        if not shared:
            continue
        counts = f"{shared} of the {len(problems)} held-out problems of {name} are also in data.train = {data.train!r}"
        remedy = "name another set in data.eval"
        if not TASKS.keys() & {name, data.train}:
            remedy = f"leave them out of training with data.decontaminate = [{name!r}], or {remedy}"
        if shared == len(problems):
            raise DataError(f"{counts}, so their accuracy says nothing about other problems; {remedy}")
        notes.append(f"WARNING: {counts}, so their accuracy is too high; {remedy}")
    return notes


def load_finite(name: str, columns: Mapping[str, str] | None = None) -> LoadedProblems:
    """The problems of a finite set; raises ConfigError for a generated task, which is endless."""
    if name in TASKS:
        raise ConfigError(
            f"{name!r} is a generated task: it is endless, and its golds are computed; give a file, a named set or a hub name"
        )
    return load_problems(name, columns=columns)


def training_problems(data: DataSection, seed: int) -> tuple[Sequence[Problem], list[str]]:
    """The training problems of a recipe after its filters and cleaning, and a line for each kind of rows left out.

    Raises ConfigError if the recipe filters or cleans a generated task, DataError if no problem is left.
    """
    if data.train in TASKS and (data.filter or data.deduplicate or data.decontaminate):
        raise ConfigError(
            f"data.train = {data.train!r} is a generated task, which never contains held-out problems; remove data.filter, "
            "data.deduplicate and data.decontaminate, which are for data sets"
        )
    # data.columns applies to held-out sets too, but not to other sets.
    evaluated_sets = {name: load_finite(name, data.columns if name in data.eval else None) for name in data.decontaminate}
    loaded = load_problems(
        data.train, columns=data.columns, strict=data.strict, seed=seed, task_options=data.task, keep=data.filter
    )
    notes = [
        *loaded.warnings(),
        *(line for one in evaluated_sets.values() if one.name not in data.eval for line in one.warnings()),
    ]
    if loaded.filtered:
        notes.append(f"{data.train}: {loaded.filtered} rows left out by data.filter, {len(loaded.problems)} kept")
    problems = loaded.problems
    if data.deduplicate:
        found = deduplicate(problems)
        problems = found.kept
        notes.append(
            f"{data.train}: {found.repeated} repeated problems left out, and {found.conflicting} rows of "
            f"{len(found.conflicts)} problems with different golds"
        )
    for name, evaluated in evaluated_sets.items():
        overlap = find_overlap(problems, evaluated.problems)
        hit = {id(pair.train) for pair in overlap}
        problems = [problem for problem in problems if id(problem) not in hit]
        notes.append(
            f"{data.train}: {len(hit)} problems left out that overlap {len({pair.evaluated.id for pair in overlap})} of "
            f"{len(evaluated.problems)} problems of {name}"
        )
    if not len(problems):
        raise DataError(f"{data.train}: no problem is left; {'; '.join(notes)}")
    return problems, notes
