"""A rollout engine in one Ray actor: transformers, one request after another, each response drawn from a seed of its own."""

import hashlib
import os
from collections import Counter

import ray
import torch
from transformers import AutoModelForCausalLM
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput


class ServerAdapter(BaseRollout):
    """The trainer's end: gives the server new weights."""

    def __init__(self, config, model_config, device_mesh, replica_rank=-1):
        super().__init__(config, model_config, device_mesh)
        self.replica_rank = int(os.environ["RANK"]) if replica_rank == -1 else replica_rank

    async def resume(self, tags):
        pass

    async def release(self):
        pass

    async def update_weights(self, weights, global_steps=None, **_):
        state = {name: tensor.detach().to("cpu").clone() for name, tensor in weights}
        await ray.get_actor(f"tinyhf_server_{self.replica_rank}").load.remote(state, global_steps)


@ray.remote(num_cpus=0)
class TinyServer:
    def __init__(self, rank, path, max_new_tokens):
        torch.set_num_threads(1)
        self.rank = rank
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.step = 0
        self.max_new_tokens = max_new_tokens
        self.asked = Counter()

    async def load(self, state, step):
        self.model.load_state_dict(state)
        self.step = self.step if step is None else step

    async def generate(self, request_id, *, prompt_ids, sampling_params, image_data=None, video_data=None, **_):
        temperature = sampling_params.get("temperature", 1.0)
        request = (self.rank, self.step, *prompt_ids)
        seed = hashlib.sha256(repr((request, self.asked[request])).encode()).digest()
        self.asked[request] += 1
        generator = torch.Generator().manual_seed(int.from_bytes(seed[:7]))
        ids, logprobs = list(prompt_ids), []
        # A model that has learned nothing hardly ever ends by itself.
        for _ in range(int(torch.randint(1, self.max_new_tokens + 1, (), generator=generator))):
            with torch.no_grad():
                logits = self.model(torch.tensor([ids])).logits[0, -1]
            choice = (logits / temperature).log_softmax(-1) if temperature > 0 else logits.log_softmax(-1)
            token = int(torch.multinomial(choice.exp(), 1, generator=generator)) if temperature > 0 else int(logits.argmax())
            ids.append(token)
            logprobs.append(float(choice[token]))
            if token == self.model.config.eos_token_id:
                break
        return TokenOutput(
            token_ids=ids[len(prompt_ids) :],
            log_probs=logprobs,
            num_preempted=0,
            stop_reason="completed",
            extra_fields={"global_steps": self.step},
        )

    async def wake_up(self, **_):
        pass

    async def sleep(self, **_):
        pass

    async def clear_kv_cache(self):
        pass

    async def abort_all_requests(self, **_):
        pass

    async def resume_generation(self):
        pass

    async def start_profile(self, **_):
        pass

    async def stop_profile(self):
        pass


class TinyReplica(RolloutReplica):
    async def launch_servers(self):
        name = f"tinyhf_server_{self.replica_rank}"
        server = TinyServer.options(name=name, max_concurrency=1000).remote(
            self.replica_rank, self.model_config.path, self.config.response_length
        )
        self.servers, self._server_handle, self._server_address = [server], server, f"tiny-{self.replica_rank}"
