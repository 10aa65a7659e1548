"""Turns what a step did into metrics, saved rollouts, checkpoints and held-out evaluations."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from realrl.config import Config, LogSection
from realrl.errors import TrainingError
from realrl.eval.runner import evaluate
from realrl.rundir.alarms import Alarm, Alarms
from realrl.rundir.metrics import MetricsFile
from realrl.rundir.rollouts import write_rollouts
from realrl.seeding import derive_seed
from realrl.system.files import file_name
from realrl.system.memory import return_freed_memory
from realrl.system.terminal import printable
from realrl.train.checkpoint import save_checkpoint
from realrl.train.debug import save_bad_update
from realrl.train.display import Display
from realrl.train.distributed import World
from realrl.train.rollouts import Collected, SharedSampler
from realrl.train.setup import Run, sampling_params
from realrl.train.trackers import Trackers
from realrl.train.verdicts import failures_of
from realrl.types import Batch, Rollout, Verdict
from realrl.verifier.extract import last_boxed

if TYPE_CHECKING:
    from realrl.train.loop import Update


@contextmanager
def writing(path: Path, remedy: str) -> Iterator[None]:
    """What the system refuses to write within becomes a TrainingError: the path, the reason, and what to do."""
    try:
        yield
    except Exception as error:
        # The libraries in Rust (safetensors, tokenizers) have the system's words in an exception of their own.
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TrainingError(
            f"{path} cannot be written: {reason}; free space or make the folder writable, then {remedy}"
        ) from error


class Recorder:
    """Owns the run folder: everything that a run writes or prints passes here.

    Every rank calls the same methods; only the first writes and prints, and only it has a display and files. `stopping` is the
    text of an alarm that `train.stop_on` names, once it has rung.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        display: Display | None,
        metrics: MetricsFile | None,
        log: LogSection,
    ) -> None:
        self.folder = folder
        self._world = world
        self.last_checkpoint: Path | None = None
        self.stopping = ""
        self.evaluation_due = False
        self.skipped_updates = 0
        self.bad_in_a_row = 0
        self._known_ids = 0
        self._display = display
        self._metrics = metrics
        self._trackers: Trackers | None = None
        self._newest_step = 0
        self._log = log
        self._stop_on: Collection[str] = ()
        self._alarms = Alarms()
        for record in metrics.kept if metrics else ():
            self._alarms.check(record)

    def begin(self, config: Config, checkpoint: Path | None, state: dict[str, Any], known_ids: int) -> None:
        """Start the trackers, and take up the counters of the checkpoint that the run resumes from; `known_ids` counts the
        token ids that the tokenizer knows."""
        self._known_ids = known_ids
        self.last_checkpoint = checkpoint
        self._newest_step = int(state.get("step", 0))
        self.skipped_updates = int(state.get("skipped_updates", 0))
        self.bad_in_a_row = int(state.get("bad_in_a_row", 0))
        self._stop_on = config.train.stop_on
        if self._world.is_main:
            self._trackers = Trackers(self._log, self.folder, config, lambda text: self.alarm(self._newest_step, text))

    def phase(self, name: str) -> None:
        if self._display:
            self._display.phase(name)

    def line(self, text: str) -> None:
        if self._display:
            self._display.line(printable(text))

    def alarm(self, step: int, message: str) -> None:
        message = printable(message)
        self.line(f"step {step}: {message}")
        if self._world.is_main:
            with self._writing("alarms.txt") as path, path.open("a") as file:
                file.write(f"step {step}: {message}\n")

    def step(
        self,
        step: int,
        batch: Batch,
        collected: Collected,
        updates: Sequence[Update],
        learning_rate: float,
        seconds: dict[str, float],
    ) -> None:
        """Metrics of a finished step (names and units: docs/metrics.md), written, sent to the trackers and shown."""
        metrics = {
            **_reward_metrics(batch, collected.rollouts, collected.verdicts),
            "response/unknown_token_share": float((batch.response_ids >= self._known_ids).any(dim=1).float().mean()),
            **_update_metrics(batch, updates),
            "sampler/updates_behind": float(collected.updates_behind),
            "optim/lr": learning_rate,
            "time/sample_s": collected.sample_s,
            "time/grade_s": collected.grade_s,
            **{f"time/{name}_s": value for name, value in seconds.items()},
        }
        elapsed = sum(seconds.values())
        metrics["time/step_s"] = elapsed
        metrics["throughput/tokens_per_s"] = float(batch.loss_mask.sum()) / elapsed
        self.skipped_updates += int(metrics["train/nonfinite"])
        self._write(step, metrics)
        if self._display:
            self._display.step(step, metrics)
        self._ring(step, self._alarms.check(metrics, failures_of(collected.verdicts)))
        if self._log.rollouts and self._world.is_main:
            rows = _rollout_rows(step, batch, collected.rollouts, collected.verdicts, updates)
            if self._log.tokens:
                rows = [row | tokens for row, tokens in zip(rows, _token_columns(batch, updates), strict=True)]
            with self._writing(f"rollouts/step_{step:06}.parquet") as path:
                write_rollouts(path, rows)

    def bad_updates(self, step: int, updates: Sequence[Update]) -> None:
        """Keep the mini-batches of updates that were skipped, the first few of a run."""
        for index, update in enumerate(updates):
            if update.bad and self._world.is_main:
                with self._writing(f"debug/step_{step:06}_update_{index}.json") as path:
                    kept = save_bad_update(path.parent, step, index, update.bad)
                if kept:
                    self.line(f"step {step}: the mini-batch is kept; look at it with: realrl debug-batch {kept}")

    def evaluate(self, run: Run, step: int) -> None:
        """Pass@1 on each held-out set, sampled and greedy; the same draws at every call. Ranks share the sampling."""
        config = run.config
        self.evaluation_due = False
        for name, prompts in run.held_out.items():
            self.phase(f"evaluating {name}")
            for mode in ("sampled", "greedy") if config.eval.greedy else ("sampled",):
                result = evaluate(
                    SharedSampler(run.sampler, run.world),
                    prompts,
                    run.grader,
                    samples=1 if mode == "greedy" else config.eval.samples,
                    params=sampling_params(config.sampling, greedy=mode == "greedy", top_p=config.eval.top_p),
                    seed=derive_seed(config.run.seed, "eval", name),
                )
                return_freed_memory()
                if not self._world.is_main:
                    continue
                prefix = f"eval/{name}/{mode}"
                metrics = {
                    f"{prefix}/accuracy": result.accuracy,
                    f"{prefix}/standard_error": result.standard_error,
                    f"{prefix}/boxed_share": result.boxed_share,
                    f"{prefix}/truncated_share": result.truncated_share,
                }
                self._write(step, metrics)
                with self._writing(f"eval/{file_name(name)}_{mode}_step_{step:06}.parquet") as path:
                    write_rollouts(path, result.samples)
                self.line(
                    f"eval step {step}: {name} {mode} accuracy {result.accuracy:.3f} ± {result.standard_error:.3f} "
                    f"(boxed {result.boxed_share:.2f}, {len(result.samples)} samples of {len(prompts)} problems)"
                )
                self._ring(step, self._alarms.check(metrics))

    def checkpoint(self, run: Run, step: int) -> None:
        """Save model and trainer state; the newest `checkpoint.keep` stay. A run resumed from it begins with an evaluation
        that is due."""
        self.phase("saving")
        with self._writing(f"checkpoints/step_{step}") as path:
            if self._metrics:
                self._metrics.sync()
            self.last_checkpoint = save_checkpoint(
                path.parent,
                step,
                run.model,
                run.tokenizer,
                run.optimizer,
                {
                    "seed": run.config.run.seed,
                    "skipped_updates": self.skipped_updates,
                    "bad_in_a_row": self.bad_in_a_row,
                    "evaluation_due": self.evaluation_due,
                },
                run.config.checkpoint.keep,
                run.world,
            )

    def _ring(self, step: int, alarms: Sequence[Alarm]) -> None:
        for alarm in alarms if self._world.is_main else ():
            self.alarm(step, f"ALARM: {alarm.text}")
            if alarm.kind in self._stop_on:
                self.stopping = alarm.text

    def close(self) -> None:
        if self._trackers:
            self._trackers.close()
        if self._display:
            self._display.close()
        if self._metrics:
            self._metrics.close()

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        self._newest_step = step
        if self._metrics:
            with self._writing("metrics.jsonl"):
                self._metrics.write(step, {name: value for name, value in metrics.items() if math.isfinite(value)})
        if self._trackers:
            self._trackers.log(metrics, step)

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        """The path of a file of the run, in its folder; see `writing`."""
        path = self.folder / name
        good = self.last_checkpoint
        with writing(path, f"--resume goes on from {good}" if good else "--resume begins again (no checkpoint yet)"):
            path.parent.mkdir(exist_ok=True)
            yield path


def _reward_metrics(batch: Batch, rollouts: Sequence[Rollout], verdicts: Sequence[Verdict]) -> dict[str, float]:
    groups = [batch.rewards[batch.group_ids == group] for group in range(len(batch.prompts))]
    solved_all = sum(bool((rewards == 1).all()) for rewards in groups)
    solved_none = sum(bool((rewards == 0).all()) for rewards in groups)
    lengths = batch.loss_mask.sum(dim=1).float()
    count = len(rollouts)
    return {
        "reward/mean": float(batch.rewards.mean()),
        "reward/grader_errors": float(sum(verdict.status == "grader_error" for verdict in verdicts)),
        "groups/solved_all": solved_all / len(groups),
        "groups/solved_none": solved_none / len(groups),
        # By counts: 1 − 1/3 − 2/3 is not 0, and an alarm asks whether it is.
        "groups/mixed": (len(groups) - solved_all - solved_none) / len(groups),
        "format/boxed_share": sum(last_boxed(rollout.text) is not None for rollout in rollouts) / count,
        "format/no_answer_share": sum(verdict.status == "no_answer" for verdict in verdicts) / count,
        "response/length_mean": float(lengths.mean()),
        "response/length_max": float(lengths.max()),
        "response/truncated_share": sum(rollout.truncated for rollout in rollouts) / count,
    }


def _update_metrics(batch: Batch, updates: Sequence[Update]) -> dict[str, float]:
    """Means over the rollouts whose gradient was computed, at the moment of their own update."""
    computed = torch.cat([update.rows[update.report.computed_N.cpu()] for update in updates])
    right = batch.rewards[computed] > 0

    def gather(name: str) -> torch.Tensor:
        return torch.cat([getattr(update.report, name)[update.report.computed_N] for update in updates])

    scores, weights = gather("scores_N"), gather("weights_N")
    gaps = torch.cat([_sampler_gap(batch, update) for update in updates])
    metrics = {
        "loss": sum(update.report.loss for update in updates) / len(updates),
        "grad/norm": max(update.grad_norm for update in updates),
        "policy/entropy": _mean(gather("entropy_N")),
        "policy/top1_share": _mean(gather("top1_N")),
        "score/positive_mean": _mean(scores[right]),
        "score/negative_mean": _mean(scores[~right]),
        "weight/abs_max": float(weights.abs().max()) if len(weights) else 0.0,
        "sampler/logprob_gap": _mean(gaps.abs()),
        "sampler/importance_max": float(gaps.exp().max()) if len(gaps) else 1.0,
        "compute/forwards": float(sum(update.forwards for update in updates)),
        "compute/backwards": float(sum(update.backwards for update in updates)),
        "compute/micro_batch_tokens": float(updates[-1].budget),
        "compute/rollouts_share": len(computed) / len(batch),
        "train/nonfinite": float(sum(not update.finite for update in updates)),
        "train/inert_updates": float(sum(not update.report.computed_N.any() for update in updates)),
    }
    last = updates[-1].report.metrics
    return metrics | {name: last[name] for name in last if name == "kl" or name.startswith("ratio/")}


def _sampler_gap(batch: Batch, update: Update) -> torch.Tensor:
    """log π_policy − log π_sampler of the tokens of an update that was made with the weights that sampled."""
    report = update.report
    if bool((report.scores_N != 0).any()):
        return torch.zeros(0)
    rows = update.rows[report.computed_N.cpu()]
    width = report.logprobs_NT.shape[1]
    gap = report.logprobs_NT[report.computed_N] - batch.logprobs_sampler[rows, :width]
    return gap[batch.loss_mask[rows, :width]].cpu()


def _mean(values: torch.Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


def _rollout_rows(step, batch: Batch, rollouts, verdicts, updates) -> list[dict[str, Any]]:
    score, weight = torch.zeros(len(batch)), torch.zeros(len(batch))
    for update in updates:
        score[update.rows] = update.report.scores_N.cpu()
        weight[update.rows] = update.report.weights_N.float().cpu()
    rows = []
    for index, (rollout, verdict) in enumerate(zip(rollouts, verdicts, strict=True)):
        prompt = batch.prompts[rollout.prompt_index]
        rows.append(
            {
                "step": step,
                "group": rollout.prompt_index,
                "problem_id": prompt.problem.id,
                "prompt": prompt.text,
                "response": rollout.text,
                "extracted": verdict.extracted,
                "answer": prompt.problem.answer,
                "verdict": verdict.status,
                "reason": verdict.reason,
                "reward": verdict.reward,
                "score": float(score[index]),
                "weight": float(weight[index]),
                "tokens": len(rollout.token_ids),
                "truncated": rollout.truncated,
            }
        )
    return rows


def _token_columns(batch: Batch, updates: Sequence[Update]) -> list[dict[str, Any]]:
    """Each rollout's token ids, and log π_θ − log π_old of each token at the moment of its own update, before it."""
    log_ratio_NT = torch.zeros(batch.logprobs_sampler.shape)
    for update in updates:
        part = update.report.log_ratio_NT.float().cpu()
        # A mini-batch is as wide as its own longest response.
        log_ratio_NT[update.rows, : part.shape[1]] = part
    rows = zip(batch.response_ids.cpu(), log_ratio_NT, batch.loss_mask.cpu(), strict=True)
    return [
        {"token_ids": ids[mask].numpy().astype("int32"), "log_ratio": ratios[mask].numpy().astype("float16")}
        for ids, ratios, mask in rows
    ]
