"""A verifier that a user brings may do anything: its answer alone is lost, and says why."""

import pytest
from hostile_verifiers import FAULTS

from realrl.config import RewardSection
from realrl.errors import ConfigError
from realrl.rewards import build_grader


def test_a_faulty_verifier_costs_its_own_answer(capfd):
    faults = FAULTS.split()
    responses = [text for fault in faults for text in (fault, "7")]
    with build_grader(RewardSection(type="hostile_verifiers:faulty", workers=1, timeout_s=5, memory_mib=512)) as grader:
        verdicts = grader.score(responses, ["7"] * len(responses))
    assert [verdict.status for verdict in verdicts[1::2]] == ["correct"] * len(faults)
    assert {fault: v.status for fault, v in zip(faults, verdicts[::2], strict=True)} == dict.fromkeys(faults, "grader_error")
    reasons = dict(zip(faults, (verdict.reason for verdict in verdicts[::2]), strict=True))
    assert "within 5 s" in reasons["hang"]
    assert "died" in reasons["exit"] and "died" in reasons["segfault"] and "MemoryError" in reasons["hoard"]
    assert all(0 < len(reason) <= 250 for reason in reasons.values())
    assert capfd.readouterr() == ("", "")


def test_importing_a_verifier_is_not_part_of_its_first_deadline(monkeypatch):
    monkeypatch.setenv("VERIFIER_IMPORT_S", "4")
    with build_grader(RewardSection(type="hostile_verifiers:faulty", workers=1, timeout_s=3)) as grader:
        assert grader.score(["7"], ["7"])[0].status == "correct"


@pytest.mark.parametrize(
    "path", ["no_such_module:f", "hostile_verifiers:no_such_function", "hostile_verifiers:", ":f", "os:path"]
)
def test_a_verifier_that_cannot_be_had_says_so(path):
    with pytest.raises(ConfigError, match=rf"'{path}' cannot be loaded: \w+Error: .+"):
        build_grader(RewardSection(type=path, workers=1, timeout_s=30))
