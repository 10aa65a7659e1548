"""What of verl's configuration is refused, with verl's own defaults around it."""

import importlib
import logging
from pathlib import Path

import pytest

verl = pytest.importorskip("verl.protocol", reason="verl is not installed in this environment; run `make test-verl`")

from hydra import compose, initialize_config_dir  # noqa: E402
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn  # noqa: E402

from realrl.errors import ConfigError, EngineError  # noqa: E402
from realrl.integrations import engines  # noqa: E402
from realrl.integrations.verl import loss, plugin  # noqa: E402
from realrl.integrations.verl.checks import check_config  # noqa: E402

ACTOR = "actor_rollout_ref.actor"
GOOD = [
    "trainer.v1.trainer_mode=real_sync",
    "algorithm.adv_estimator=real",
    f"{ACTOR}.policy_loss.loss_mode=real",
    "actor_rollout_ref.rollout.n=8",
    "data.train_batch_size=128",
    f"{ACTOR}.ppo_mini_batch_size=32",
    "critic.enable=False",
]


def check(*overrides):
    folder = Path(verl.__file__).parent / "trainer" / "config"
    with initialize_config_dir(str(folder), version_base=None):
        return check_config(compose("ppo_trainer", [*GOOD, *overrides]))


def test_verl_has_loaded_the_plugin():
    assert get_policy_loss_fn("real") is loss.policy_loss
    assert get_adv_estimator_fn("real") is loss.refuse_other_trainers


def test_a_version_that_was_not_tested_is_said_where_verl_would_say_nothing(monkeypatch, caplog):
    monkeypatch.setitem(engines.TESTED, "verl", ("0.8.0",))
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(EngineError, match=r"verl 0\.9\.1 is installed.*pip install 'verl==0\.8\.0'"),
    ):
        importlib.reload(plugin)
    assert "trainer_mode real_sync is unknown" in caplog.text


def test_an_untested_strategy_is_said(caplog):
    check(f"{ACTOR}.strategy=fsdp2")
    assert not caplog.records
    check(f"{ACTOR}.strategy=fsdp")
    assert "actor.strategy=fsdp has not been tested" in caplog.text


def test_the_objective_is_the_recipes_table():
    assert check().model_dump() == check("+algorithm.real.type=real").model_dump()
    objective = check("+algorithm.real.tau=0.25", "+algorithm.real.anchor=False", "+algorithm.real.degenerate_groups=use")
    assert (objective.tau, objective.anchor, objective.degenerate_groups) == (0.25, False, "use")
    assert check("+algorithm.real.type=dapo").type == "dapo"
    kl = ["+algorithm.real.kl.target=ref", "+algorithm.real.kl.coef=0.001"]
    assert check(*kl, f"{ACTOR}.use_kl_loss=True", f"{ACTOR}.kl_loss_coef=0").needs_ref


REFUSED = {
    "algorithm.adv_estimator=grpo": "set algorithm.adv_estimator=real",
    f"{ACTOR}.policy_loss.loss_mode=vanilla": f"set {ACTOR}.policy_loss.loss_mode=real",
    "+algorithm.real.taux=1": "no key 'taux'; did you mean 'tau'",
    "+algorithm.real.tau=-1": "tau = -1",
    "+algorithm.real.type=reel": "unknown objective type 'reel'; did you mean 'real'",
    "+algorithm.real.type=math:pi": "must be a subclass of realrl.ScoreObjective",
    "+algorithm.real=bce": r"\+algorithm.real.type=bce",
    "actor_rollout_ref.rollout.n=1": "actor_rollout_ref.rollout.n=8",
    f"{ACTOR}.ppo_mini_batch_size=48": r"does not divide data.train_batch_size=128.*\[1, 2, 4, 8, 16, 32, 64, 128\]",
    "algorithm.use_kl_in_reward=True": r"set it to False.*\+algorithm.real.kl.target=ref",
    f"{ACTOR}.entropy_coeff=0.01": "set it to 0",
    f"{ACTOR}.use_kl_loss=True": r"kl_loss_coef=0 and give it as .*\+algorithm.real.kl.coef=0.001",
    "algorithm.rollout_correction.rollout_is=token": "rollout_is=token is not supported",
    "algorithm.rollout_correction.rollout_rs=token_k1": "rollout_rs=token_k1 is not supported",
    "algorithm.rollout_correction.bypass_mode=True": "bypass_mode=True is not supported",
    "distillation.enabled=True": "set it to False",
    f"{ACTOR}.use_prefix_grouper=True": "set it to False",
    "critic.enable=True": "set critic.enable=False",
    "reward.reward_manager.name=rate_limited": "a false label: set reward.reward_manager.name=naive",
    "+algorithm.real.type=grpo": f"add {ACTOR}.use_kl_loss=True {ACTOR}.kl_loss_coef=0",
}


@pytest.mark.parametrize("override", REFUSED)
def test_refused_with_the_remedy(override):
    with pytest.raises(ConfigError, match=REFUSED[override]):
        check(override)


def test_all_faults_in_one_error():
    with pytest.raises(ConfigError) as error:
        check("actor_rollout_ref.rollout.n=1", "algorithm.use_kl_in_reward=True", "+algorithm.real.taux=1")
    assert str(error.value).count("\n- ") == 3


@pytest.mark.parametrize("path", ["pkg://realrl.integrations.verl.reward", "pkg://realrl/integrations/verl/reward"])
def test_our_reward_functions_arguments_are_checked(path):
    function = "reward.custom_reward_function"
    check(f"{function}.path={path}", f"+{function}.reward_kwargs.require_boxed=True")
    with pytest.raises(ConfigError, match="reward_kwargs: unknown reward.type 'maths'; did you mean math"):
        check(f"{function}.path={path}", f"+{function}.reward_kwargs.type=maths")
    with pytest.raises(ConfigError, match="reward_kwargs: boxed"):
        check(f"{function}.path={path}", f"+{function}.reward_kwargs.boxed=True")
