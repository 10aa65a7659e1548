"""A sampler, an evaluation engine and a data set that a user brings, as in the docs, and an object that is none of them."""

from dataclasses import replace

from realrl.sampling import HFSampler, TextResponse


class Greedy(HFSampler):
    """Samples the most likely tokens, whatever temperature the recipe asks for."""

    def __init__(self, config, model, tokenizer, *, longest_prompt, copy):
        super().__init__(model, tokenizer, copy=copy)

    def sample(self, prompts, *, params, **rest):
        return super().sample(prompts, params=replace(params, temperature=0.0), **rest)


class Echo:
    """An engine that repeats the prompt."""

    def __init__(self, options):
        self.limit = options.params.max_new_tokens

    def generate(self, requests):
        for index, request in enumerate(requests):
            yield [(index, TextResponse(request.text[: self.limit], tokens=None, truncated=False))]

    def close(self):
        pass


def doubles(split):
    """Rows of a data set: other numbers for training than for evaluation."""
    for n in range(10, 14) if split == "train" else range(20, 24):
        yield {"problem": f"{n}+{n}=", "answer": 2 * n}


def nothing(*arguments, **options):
    return None


SEVEN = 7
