"""Samplers: groups of rollouts from a policy for training; engines: responses to requests for evaluation."""

from realrl.sampling.base import Sampler, SamplingParams, TextEngine, TextRequest, TextResponse
from realrl.sampling.hf import HFSampler

__all__ = ["HFSampler", "Sampler", "SamplingParams", "TextEngine", "TextRequest", "TextResponse"]
