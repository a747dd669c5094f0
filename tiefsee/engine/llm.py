"""`LLM`: load a model and generate, in the thread that asks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiefsee.engine.build import build_core
from tiefsee.engine.config import EngineConfig
from tiefsee.engine.core import EngineCore
from tiefsee.engine.generation import Answer, Generation
from tiefsee.engine.sampling import Sampling
from tiefsee.errors import ConfigError

Prompt = str | Sequence[int]


class LLM:
    """One model on one device.

        llm = LLM("deepseek-ai/DeepSeek-V2-Lite", device="cpu")
        print(llm.generate("The sea was", Sampling(temperature=0, max_tokens=32)).text)

    `model` is a folder, a hub id or the name of a bundled model. `dtype` is what activations and plain
    weights are ("auto": the checkpoint's); `format` converts weights at load ("auto" leaves FP8 and FP4 packed
    where the device can hold them, "keep" insists on it). With `tp` that many ranks share the model, each on a device
    of its own from `device` on (on the CPU, in processes that share its cores); `close` ends them. Other options are
    those of `EngineConfig`. Raises ModelNotFound, ConfigError, CheckpointError, DeviceError, OutOfMemory.
    """

    def __init__(
        self, model: str | Path, *, device: str = "cpu", dtype: str = "auto", format: str = "auto", tp: int = 1,
        progress: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        unknown = set(options) - set(EngineConfig.__dataclass_fields__)
        if unknown:
            raise ConfigError(
                f"unknown options {sorted(unknown)}; known are {sorted(EngineConfig.__dataclass_fields__)}"
            )
        config = EngineConfig(**options)
        self.core: EngineCore = build_core(model, device, dtype, format, config, tp=tp, progress=progress)
        self.tokenizer = self.core.tokenizer

    def close(self) -> None:
        """End the processes of other ranks, if there are any; they end with this process at the latest."""
        self.core.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def on(cls, core: EngineCore) -> LLM:
        """An `LLM` on an engine that exists already."""
        llm = cls.__new__(cls)
        llm.core, llm.tokenizer = core, core.tokenizer
        return llm

    def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling: Sampling | Sequence[Sampling] | None = None
    ) -> Any:
        """Answers to one prompt (an `Answer`) or to several (a list), text or token ids.

        Prompts run side by side. Without `sampling` the checkpoint's defaults count.
        """
        if hasattr(prompts, "tolist"):  # token ids as an array or a tensor
            prompts = prompts.tolist()
        single = _is_single(prompts)
        many: list[Any] = [prompts] if single else list(prompts)
        chosen = list(sampling) if isinstance(sampling, Sequence) else [sampling or Sampling()] * len(many)
        if len(chosen) != len(many):
            raise ConfigError(f"{len(chosen)} samplings for {len(many)} prompts; give one, or one for each")
        groups = self._queue([self.encode(p) for p in many], chosen)
        self._run()
        answers = [answer_of(group) for group in groups]
        return answers[0] if single else answers

    def logits(self, prompts: Sequence[Sequence[int]], *, chunk: int | None = None) -> list[Tensor]:
        """Raw logits of every position, [T, W] in float32 on the CPU, one tensor per list of token ids.

        Through the same scheduler and cache as generation; `chunk` is the token budget of a step (1:
        token by token), by default the engine's.
        """
        sampling = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)
        with self.core.step_budget(chunk):
            generations = self.core.add_all(
                [list(p) for p in prompts], [sampling] * len(prompts), _ignore, keep_logits=True
            )
            self._run()
        return [torch.cat([rows.float().cpu() for rows in g[0].prompt_rows or []]) for g in generations]

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; ids pass."""
        if not isinstance(prompt, str):
            return [int(t) for t in prompt]
        if self.tokenizer is None:
            raise ConfigError("this model has no tokenizer.json; pass token ids, or copy it from the original release")
        return self.tokenizer.encode(prompt)

    def _queue(self, prompts: list[list[int]], samplings: list[Sampling]) -> list[list[Generation]]:
        return self.core.add_all(prompts, samplings, _ignore)

    def _run(self) -> None:
        try:
            while self.core.has_work():
                self.core.step()
        except BaseException:
            self.core.cancel_all()  # Ctrl-C must not leave half a batch for the next call
            raise


def answer_of(group: Sequence[Generation]) -> Answer:
    """The finished generations of one prompt as one answer."""
    first = group[0]
    request = first.request
    prompt = tuple(request.tokens[: request.num_prompt_tokens])
    logprobs = first.prompt_logprobs() if first.sampling.prompt_logprobs is not None else None
    return Answer(prompt, tuple(g.completion() for g in group), request.num_cached_tokens, logprobs)


def _ignore(_index: int, _delta: object) -> None:
    """Nobody listens: the answers are read at the end."""


def _is_single(prompts: Any) -> bool:
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
