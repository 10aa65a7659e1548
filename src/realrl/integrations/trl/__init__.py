"""Our objectives inside TRL: `RealConfig` and `RealTrainer` replace `GRPOConfig` and `GRPOTrainer`."""

from realrl.integrations.engines import check_engine

check_engine("trl")

from realrl.integrations.trl.config import RealConfig  # noqa: E402  the version is checked first
from realrl.integrations.trl.data import eval_datasets, prompt_dataset  # noqa: E402
from realrl.integrations.trl.reward import verifier_reward  # noqa: E402
from realrl.integrations.trl.trainer import RealTrainer  # noqa: E402

__all__ = ["RealConfig", "RealTrainer", "eval_datasets", "prompt_dataset", "verifier_reward"]
