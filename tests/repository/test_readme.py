"""The snippet of the README runs, and gives the values beside it."""

from pathlib import Path

from pages import blocks, run_python

README = Path(__file__).parents[2] / "README.md"


def test_the_snippet():
    (snippet,) = [text for language, _, text in blocks(README) if language == "python"]
    names: dict = {}
    run_python(snippet, names)
    assert names["rewards"] == [True, False]
    # Eq. 9 and 10 for one right and one wrong response of two tokens at s̄ = 0: ∓(1/τ)/(1 + 1) for each response.
    assert names["policy"].grad.tolist() == [[-1 / 0.5 / 2 / 2] * 2, [1 / 0.5 / 2 / 2] * 2]
