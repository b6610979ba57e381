"""UGR inside OpenRLHF: a reward function, and an agent that keeps rollouts in a catalogue and knows the whole group.

    # reward.py, --reward.remote_url reward.py
    from ugr_fast.integrations.openrlhf import make_reward_func
    reward_func = make_reward_func(end="<|im_end|>")

    # agent.py, --train.agent_func_path agent.py --algo.advantage.estimator dr_grpo
    from ugr_fast import SidTrie
    from ugr_fast.integrations.openrlhf import SidAgentExecutor
    class AgentExecutor(SidAgentExecutor):
        def __init__(self):
            super().__init__(SidTrie.load("items.safetensors"), reward="ugr")

OpenRLHF scores one sample at a time, so a reward function can tell hits from misses and no more. The agent can do what
needs the group: OpenRLHF calls it once per sample, but for all samples of a prompt together, and they wait for each
other before they are scored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from openrlhf.utils.agent import AgentExecutorBase

from ugr_fast import rewards

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ugr_fast.trie import SidTrie

__all__ = ["SidAgentExecutor", "make_reward_func"]

Reward: TypeAlias = Literal["match", "ranking", "uncertainty_weighted", "ugr"]
_REWARDS = ("match", "ranking", "uncertainty_weighted", "ugr")


def make_reward_func(end: str = "") -> Callable[..., dict[str, Any]]:
    """Return a `reward_func` for OpenRLHF: 1 for the semantic ID of the label, 0 for another.

    OpenRLHF calls it with one sample at a time, and notes an exception in its log only: training then stops a step
    later, for want of a reward.

    Args:
        end: the text of the token that ends an answer, if answers have one.

    Returns:
        reward_func(queries, prompts, labels) -> {"rewards", "scores", "extra_logs"}, two tensors and a dict. White
        space between tokens does not count.

    Example:
        >>> reward_func = make_reward_func(end="</s>")
        >>> reward_func(["after 7: <a_1><b_2></s>", "after 7: <a_1><b_3>"], ["after 7: "] * 2, ["<a_1><b_2>"] * 2)
        {'rewards': tensor([1., 0.]), 'scores': tensor([1., 0.]), 'extra_logs': {'hit': tensor([1., 0.])}}

    Source: OpenRLHF's single-turn agent; the rule reward of MiniOneRec (arXiv 2510.24431).
    """

    def reward_func(queries: list[str], prompts: list[str], labels: list[str], **columns: Any) -> dict[str, Any]:
        answers = [_answer(query, prompt, end) for query, prompt in zip(queries, prompts, strict=True)]
        hits = [answer == _packed(label) for answer, label in zip(answers, labels, strict=True)]
        earned = torch.tensor(hits, dtype=torch.float32)
        return {"rewards": earned, "scores": earned, "extra_logs": {"hit": earned}}

    return reward_func


class SidAgentExecutor(AgentExecutorBase):  # type: ignore[misc]
    """An agent of OpenRLHF whose answers are semantic IDs of a catalogue, drawn token by token.

    Every token is a request of its own to the engine with the trie's children as `allowed_token_ids`; the engine's
    prefix cache keeps the prompt. Samples of a prompt are drawn independently, so the same semantic ID may come twice.
    No token ends an answer: the last of a semantic ID does.

    | reward | a sample earns |
    |---|---|
    | `"match"` | 1 for a hit |
    | `"ranking"` | `rewards.ranking`, ranks by falling log-prob, equal ones in the order drawn |
    | `"uncertainty_weighted"` | `rewards.uncertainty_weighted` |
    | `"ugr"` | its whole advantage in `rewards.ugr` times the weight of its group |

    "ugr" needs `--algo.advantage.estimator dr_grpo`: that takes off the mean of a group, which is 0 already, and leaves
    the rest as it is. The other rewards go with any estimator of groups. OpenRLHF's "score" is 1 for a hit throughout.

    Args:
        trie: semantic IDs that may be answered; none may be a prefix of another.
        reward: what a sample earns, see above.
        normalize: what the engine's log-probs are: "full", over the vocabulary, as vLLM gives them unless told
            otherwise, or "allowed", as with `--vllm.logprobs_mode processed_logprobs`; a forced token is then not asked
            for.
        score: of `rewards.uncertainty_weighted` and `rewards.ugr`.
        temperature: of the same.
        alpha_min: of `rewards.ugr`.

    Raises:
        ValueError: an unknown `reward` or `normalize`, a trie that is not prefix-free.

    Example:
        >>> from ugr_fast import SidTrie
        >>> agent = SidAgentExecutor(SidTrie.build([[1, 3], [2, 3]]), reward="ranking")
        >>> agent.rewards(np.array([[1, 3], [2, 3]]), np.array([2, 3]), np.array([-0.2, -1.8])).round(3).tolist()
        [-0.613, 1.0]

    Source: OpenRLHF, `openrlhf.utils.agent.AgentExecutorBase`; UGR (arXiv 2602.11719) §3.
    """

    def __init__(
        self,
        trie: SidTrie,
        *,
        reward: Reward = "uncertainty_weighted",
        normalize: Literal["full", "allowed"] = "full",
        score: Literal["mean", "sum"] = "mean",
        temperature: float = 1.0,
        alpha_min: float = 0.0,
    ) -> None:
        if reward not in _REWARDS:
            raise ValueError(f"`reward` must be one of {', '.join(_REWARDS)}, got {reward!r}")
        if normalize not in ("full", "allowed"):
            raise ValueError(f"`normalize` must be 'full' or 'allowed', got {normalize!r}")
        if not trie.prefix_free:
            raise ValueError("`trie` must have no SID that is a prefix of another; build it with `end=`")
        self._trie, self._reward, self._normalize = trie, reward, normalize
        self._score, self._temperature, self._alpha_min = score, temperature, alpha_min
        self._groups: dict[int, _Group] = {}

    async def execute(
        self,
        prompt: str,
        label: str,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict[str, Any]:
        """Draw one sample and score it beside the others of its prompt; OpenRLHF's signature and answer.

        Raises:
            ValueError: a label that is no semantic ID of the catalogue, images, or an engine that answers with what
                is not allowed.
        """
        if images:
            raise ValueError(f"`images` must be empty: prompts of this agent are text, got {images!r}")
        group, place = self._join(sampling_params)
        async with group:
            target = self._target(_encode(hf_tokenizer, label), label)
            start = self._room(_encode(hf_tokenizer, prompt), max_length)
            tokens, logprobs = await self._draw(start, sampling_params, llm_engine)
            group.add(place, tokens, sum(logprobs))
            reward, hit = (await group.scored(lambda *drawn: self._judge(target, *drawn)))[place]
        return {
            "prompt": prompt,
            "label": label,
            "images": None,
            "mm_train_inputs": None,
            "reward": reward,
            "scores": hit,
            "observation_tokens": start + tokens,
            "action_ranges": [(len(start), len(start) + len(tokens))],
            "rollout_log_probs": None if sampling_params.logprobs is None else [0.0] * len(start) + logprobs,
            "truncated": False,
            "extra_logs": {"hit": hit},
        }

    def rewards(self, tokens: NDArray[Any], target: NDArray[Any], scores: NDArray[Any]) -> NDArray[np.float64]:
        """Return what each sample of a group earns.

        Args:
            tokens: (G, L) ints, right-padded with -1.
            target: (L,) ints, right-padded with -1.
            scores: (G,) sums of token log-probs.

        Returns:
            (G,) rewards.
        """
        order = np.argsort(-scores, kind="stable")
        ranked = tokens[None, order], target[None], scores[None, order]  # a batch of one group, in beam order
        earned = np.empty(len(tokens))
        earned[order] = self._ranked_rewards(*ranked)[0]
        return earned

    def _ranked_rewards(self, tokens: NDArray[Any], target: NDArray[Any], scores: NDArray[Any]) -> NDArray[Any]:
        hits = rewards.match(tokens, target)
        if self._reward == "match":
            return hits
        if self._reward == "ranking":
            return rewards.ranking(hits)
        if self._reward == "uncertainty_weighted":
            lengths = (tokens >= 0).sum(2)
            return rewards.uncertainty_weighted(
                hits, scores, score=self._score, lengths=lengths, temperature=self._temperature
            )
        signal = rewards.ugr(
            tokens, target, scores, score=self._score, temperature=self._temperature, alpha_min=self._alpha_min
        )
        weighed: NDArray[Any] = signal.weight[:, None] * signal.advantages
        return weighed

    def _judge(self, target: NDArray[Any], drawn: list[list[int]], scores: list[float]) -> list[tuple[float, float]]:
        """Return reward and hit of every sample of a group."""
        tokens = self._padded(drawn)
        hits = rewards.match(tokens[None], target[None])[0]
        return list(zip(self.rewards(tokens, target, np.array(scores)).tolist(), hits.tolist(), strict=True))

    def _target(self, tokens: list[int], label: str) -> NDArray[np.int64]:
        if self._trie.lookup([tokens])[0] < 0:
            raise ValueError(
                f"`label` must be the text of a semantic ID of the catalogue, got {label!r}, of tokens {tokens}"
            )
        target: NDArray[np.int64] = self._padded([tokens])[0]
        return target

    def _room(self, tokens: list[int], max_length: int) -> list[int]:
        """Return the last tokens of a prompt that leave room for an answer, as OpenRLHF cuts prompts."""
        if max_length <= self._trie.depth:
            raise ValueError(
                f"`max_length` must leave room for a prompt and an answer of {self._trie.depth}, got {max_length}"
            )
        return tokens[self._trie.depth - max_length :]

    def _padded(self, sids: list[list[int]]) -> NDArray[np.int64]:
        table = np.full((len(sids), self._trie.depth), -1)
        for row, sid in zip(table, sids, strict=True):
            row[: len(sid)] = sid
        return table

    async def _draw(self, start: list[int], sampling_params: Any, llm_engine: Any) -> tuple[list[int], list[float]]:
        """Draw a semantic ID behind the tokens of a prompt: its tokens and their log-probs."""
        tokens: list[int] = []
        logprobs: list[float] = []
        while len(allowed := self._trie.children(tokens).tolist()):
            token, logprob = allowed[0], 0.0
            if len(allowed) > 1 or self._normalize == "full":
                params = _one_token(sampling_params, allowed)
                token, logprob = _first_token(await llm_engine.generate(start + tokens, params), allowed)
            tokens.append(token)
            logprobs.append(logprob)
        return tokens, logprobs

    def _join(self, sampling_params: Any) -> tuple[_Group, int]:
        """Return the group of a sample, and its place: OpenRLHF hands the same object to all samples of a prompt."""
        group = self._groups.get(id(sampling_params))
        if group is None:
            group = self._groups[id(sampling_params)] = _Group(lambda: self._groups.pop(id(sampling_params)))
        return group, group.join()


@dataclass
class _Group:
    """The samples of one prompt, which are drawn at the same time and scored together."""

    forget: Callable[[], object]
    present: int = 0
    missing: int = 0
    tokens: list[list[int]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    judged: asyncio.Future[list[tuple[float, float]]] = field(default_factory=lambda: asyncio.Future())

    def join(self) -> int:
        """Announce a sample; return its place."""
        self.present += 1
        self.missing += 1
        self.tokens.append([])
        self.scores.append(0.0)
        return len(self.tokens) - 1

    async def __aenter__(self) -> None:
        await asyncio.sleep(0)  # all samples of the prompt are tasks already; now each has joined

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and not self.judged.done():
            self.judged.set_exception(RuntimeError(f"another sample of the prompt failed: {error}"))
            self.judged.exception()  # nobody may be waiting
        self.present -= 1
        if not self.present:
            self.forget()

    def add(self, place: int, tokens: list[int], score: float) -> None:
        """Note what a sample has drawn."""
        self.tokens[place], self.scores[place] = tokens, score
        self.missing -= 1

    async def scored(
        self, judge: Callable[[list[list[int]], list[float]], list[tuple[float, float]]]
    ) -> list[tuple[float, float]]:
        """Wait for the last sample, which judges them all."""
        if not self.missing:
            self.judged.set_result(judge(self.tokens, self.scores))
        return await self.judged


def _answer(query: str, prompt: str, end: str) -> str:
    """Return what of a query follows the prompt, without white space and `end`."""
    query, prompt = _packed(query), _packed(prompt)
    if not query.startswith(prompt):
        raise ValueError(
            f"`queries` must start with their `prompts`, got {query!r} for {prompt!r}; let prompts fit in the context"
        )
    return query.removeprefix(prompt).removesuffix(_packed(end))


def _packed(text: str) -> str:
    return "".join(text.split())


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _one_token(sampling_params: Any, allowed: list[int]) -> Any:
    """Return parameters for one token out of `allowed`, with its log-prob."""
    params = deepcopy(sampling_params)
    params.max_tokens, params.min_tokens = 1, 0
    params.allowed_token_ids = allowed
    params.logprobs = params.logprobs or 0  # 0: that of the token drawn alone
    return params


def _first_token(output: Any, allowed: list[int]) -> tuple[int, float]:
    """Return the token that an engine has drawn, and its log-prob."""
    drawn = output.outputs[0]
    token = drawn.token_ids[0] if len(drawn.token_ids) else None
    if token not in allowed:
        raise ValueError(f"`llm_engine` must draw one of `allowed_token_ids`, got {token} for {allowed[:8]}...")
    return token, drawn.logprobs[0][token].logprob
