"""Count the verifier's errors on real golds: harmless rewritings must be right, changed values wrong; prints JSON.

Every gold of the evaluation sets (and of each `--train` set) is rewritten and changed in every way that applies. GSM8K's golds
also stand in templates. `--show N` lists N errors of each kind. REALRL_DATA names the folder of the sets.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from realrl.config import RewardSection
from realrl.data import load_problems
from realrl.rewards import build_grader

SETS = ["math500", "minerva", "olympiadbench", "aime24", "aime25", "amc23"]
_NUMBER = re.compile(r"(?<![\w.,\\{}])\d+(?![\w.,])|(?<=[{(\[])\d+(?=[})\],])")
_WHOLE = re.compile(r"-?\d+")


def _style(command: str) -> Callable[[str], str]:
    return lambda gold: "" if "\\text" in gold or "=" in gold else f"{command}{{{gold}}}"


def _grouped(mark: str) -> Callable[[str], str]:
    return lambda gold: f"{int(gold):,}".replace(",", mark) if _WHOLE.fullmatch(gold) and abs(int(gold)) > 999 else ""


def _unit(unit: str) -> Callable[[str], str]:
    return lambda gold: f"{int(gold):,}{unit}" if _WHOLE.fullmatch(gold) else ""


def _mixed(gold: str) -> str:
    found = re.fullmatch(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}", gold)
    if not found or int(found[3]) < 2 or int(found[2]) < int(found[3]) or int(found[2]) % int(found[3]) == 0:
        return ""
    whole, rest = divmod(int(found[2]), int(found[3]))
    return rf"{found[1]}{whole}\frac{{{rest}}}{{{found[3]}}}"


HARMLESS: dict[str, Callable[[str], str]] = {
    "dfrac": lambda gold: gold.replace("\\frac", "\\dfrac"),
    "spaces": lambda gold: (
        "" if re.search(r",(\\!|\d{3})", gold) else gold.replace(",", ", ").replace("+", " + ").replace("=", " = ")
    ),
    "thin space": lambda gold: "\\, " + gold + "\\,",
    "dollars": lambda gold: f"${gold}$" if "$" not in gold else "",
    "displaystyle": lambda gold: "\\displaystyle " + gold,
    "braces": lambda gold: f"{{{gold}}}" if "," not in gold else "",
    "empty braces": lambda gold: "{}" + gold,
    "period": lambda gold: gold + ".",
    "left right": lambda gold: (
        re.sub(r"(?<!\\)\)", r"\\right)", re.sub(r"(?<!\\left)\(", r"\\left(", gold)) if "\\left" not in gold else ""
    ),
    "unicode minus": lambda gold: gold.replace("-", "−") if "\\text" not in gold else "",
    "bold": _style("\\mathbf"),
    "boldsymbol": _style("\\boldsymbol"),
    "bm": _style("\\bm"),
    "mathsf": _style("\\mathsf"),
    "underline": _style("\\underline"),
    "color": lambda gold: rf"\color{{red}}{{{gold}}}",
    "textcolor": lambda gold: rf"\textcolor{{blue}}{{{gold}}}",
    "asterisks": lambda gold: f"**{gold}**",
    "check mark": lambda gold: gold + " \\checkmark",
    "groups ,": _grouped(","),
    "groups {,}": _grouped("{,}"),
    "groups \\,": _grouped("\\,"),
    "groups \\ ": _grouped("\\ "),
    "unit in text": _unit("\\text{ m}"),
    "unit": _unit(" dollars"),
    "named": lambda gold: f"x = {int(gold):,}" if _WHOLE.fullmatch(gold) else "",
    "approx": lambda gold: f"\\approx {int(gold):,}" if _WHOLE.fullmatch(gold) else "",
    "mixed": _mixed,
}
TEMPLATES = [
    "\\boxed{{{0}}}", "\\boxed{{{0}\\text{{ eggs}}}}", "\\boxed{{\\${0}}}", "\\boxed{{x = {0}}}", "\\boxed{{{0} dollars}}",
    "The answer is {0}.", "#### {0}", "The answer is \\({0}\\).", "\\boxed{{{0}.00}}", "**Answer:** {0}",
    "The final answer is ${0}$.",
]  # fmt: skip


def changed(gold: str) -> Iterator[tuple[str, str]]:
    """(kind, another answer) for each change of the gold's value that applies."""
    numbers = list(_NUMBER.finditer(gold))[:4]
    for number in numbers:
        before, after = gold[: number.start()], gold[number.end() :]
        yield "plus one", f"{before}{int(number[0]) + 1}{after}"
        yield "a digit more", f"{before}{number[0]}7{after}"
        if len(number[0]) > 1:
            yield "a digit less", f"{before}{number[0][:-1]}{after}"
    if "±" not in gold and "\\pm" not in gold and re.fullmatch(r"-?[\d\\][^,=()<>]*", gold) and re.search(r"[1-9]", gold):
        yield (
            "other sign",
            gold[1:] if gold.startswith("-") else "-" + (gold if not re.search(r"(?<!^)[+-]", gold) else f"({gold})"),
        )
    if re.fullmatch(r"\\frac\{\d+\}\{\d+\}", gold):
        top, bottom = re.findall(r"\d+", gold)
        if top != bottom:
            yield "upside down", rf"\frac{{{bottom}}}{{{top}}}"
    if mixed := _mixed(gold):
        yield "other sign of a mixed number", mixed[1:] if mixed.startswith("-") else "-" + mixed
    if "\\sqrt" in gold:
        yield "without a root", gold.replace("\\sqrt", "", 1)
    if "\\pi" in gold:
        yield "without pi", gold.replace("\\pi", "", 1).strip() or "1"
    pair = re.fullmatch(r"(\\left)?\(([^,()]+),([^,()]+?)(\\right)?\)", gold)
    if pair and pair[2].strip() != pair[3].strip():
        yield "swapped", f"({pair[3]},{pair[2]})"
    if pair:
        yield "other brackets", f"[{pair[2]},{pair[3]}]"
        yield "one item", pair[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", action="append", default=[], help="a training set to count too")
    parser.add_argument("--show", type=int, default=0)
    args = parser.parse_args()
    pairs: list[tuple[str, str, str, str]] = []
    for name in [*SETS, *args.train]:
        for problem in load_problems(name).problems:
            gold = problem.answer
            pairs.append(("right", "itself", f"\\boxed{{{gold}}}", gold))
            written = ((kind, rewrite(gold)) for kind, rewrite in HARMLESS.items())
            pairs += [("right", kind, f"\\boxed{{{text}}}", gold) for kind, text in written if text and text != gold]
            pairs += [("wrong", kind, f"\\boxed{{{text}}}", gold) for kind, text in changed(gold)]
    for problem in load_problems("gsm8k").problems:
        gold = str(problem.answer)
        pairs += [("right", "GSM8K: " + form, form.format(gold), gold) for form in TEMPLATES]
        pairs += [("wrong", "GSM8K: " + form, form.format(int(gold) + 1), gold) for form in TEMPLATES]
    with build_grader(RewardSection(workers=1)) as grader:
        verdicts = grader.score([pair[2] for pair in pairs], [pair[3] for pair in pairs])
    count: dict[str, Counter[str]] = defaultdict(Counter)
    errors: dict[str, Counter[str]] = defaultdict(Counter)
    shown: Counter[str] = Counter()
    for (side, kind, response, gold), verdict in zip(pairs, verdicts, strict=True):
        count[side][kind] += 1
        if (verdict.status == "correct") != (side == "right"):
            errors[side][kind] += 1
            shown[side + kind] += 1
            if shown[side + kind] <= args.show:
                print(f"{side} {kind}: {gold!r} <- {response!r} ({verdict.stage}, {verdict.status})")
    for side in ("right", "wrong"):
        total = {"pairs": count[side].total(), "errors": errors[side].total(), "by kind": dict(errors[side])}
        print(json.dumps({"should be": side, **total}))


if __name__ == "__main__":
    main()
