"""A reward function for verl: 1 where the response has an even number of digits; it fails on some, always on the same."""


def compute_score(data_source, solution_str, ground_truth, extra_info=None, fail_on=None, **_):
    if fail_on is not None and str(fail_on) in solution_str:
        raise RuntimeError(f"this grader cannot read a {fail_on}")
    return float(sum(character.isdigit() for character in solution_str) % 2 == 0)
