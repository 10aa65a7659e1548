"""Samplers: groups of rollouts from a policy, behind one small protocol."""

from realrl.sampling.base import Sampler, SamplingParams
from realrl.sampling.hf import HFSampler

__all__ = ["HFSampler", "Sampler", "SamplingParams"]
